"""What the watch for reward hacking needs of the rest of a config."""

from __future__ import annotations

from collections.abc import Iterator

from flowalign.config.problems import Problem
from flowalign.config.rewards import is_set
from flowalign.config.schema import RunConfig


def monitor_rule(config: RunConfig) -> Iterator[Problem]:
    """The best checkpoint is the one with the highest held-out rewards."""
    watched = [entry for entry in config.held_out_rewards if not is_set(entry)]
    if config.monitor.action == "rollback" and not watched:
        what = "`rollback` goes to the checkpoint of the highest held-out rewards, and there are "
        what += "none of single samples"
        fix = "add held_out_rewards, or use action: stop"
        yield Problem(path=("monitor", "action"), code="CFG-CONFLICT", what=what, fix=fix)
