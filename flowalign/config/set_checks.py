"""Where rewards of whole sets can be used: nothing else would hear them."""

from __future__ import annotations

from collections.abc import Iterator

from flowalign.config.dragon import DRAGONConfig
from flowalign.config.noisy_reward import NoisyRewardConfig
from flowalign.config.problems import Problem
from flowalign.config.rewards import ExemplarBase, is_set
from flowalign.config.schema import RunConfig
from flowalign.config.steering import SteerConfig

BUILT_IN_EXEMPLARS = ("shapes:pictures", "shapes:train", "shapes:heldout")


def _conflict(path: tuple[str | int, ...], what: str, fix: str) -> Problem:
    return Problem(path=path, code="CFG-CONFLICT", what=what, fix=fix)


def sets_rule(config: RunConfig) -> Iterator[Problem]:
    """Set rewards are for DRAGON's greedy selection; it pairs the samples of a prompt."""
    algorithm, heard = config.algorithm, False
    for index, entry in enumerate(config.rewards):
        if not is_set(entry):
            continue
        heard = heard or entry.weight != 0
        if not isinstance(algorithm, DRAGONConfig):
            what = f"{entry.name} scores whole sets, and {algorithm.name} needs scores of samples"
            fix = "use algorithm dragon, or move it to held_out_rewards"
            yield _conflict(("rewards", index, "name"), what, fix)
    if not isinstance(algorithm, DRAGONConfig):
        return
    if heard and algorithm.selection == "elementwise":
        what = "elementwise cannot hear the set rewards of `rewards`"
        yield _conflict(("algorithm", "selection"), what, "use greedy_plus or greedy_margin")
    if algorithm.loss == "dpo" and not algorithm.paired:
        what = "false with loss dpo, whose samples share their noise"
        yield _conflict(("algorithm", "paired"), what, "use loss kto, or paired: true")
    if config.rollout.group_size % 2:
        what = f"{config.rollout.group_size} with dragon, which pairs the samples of a prompt"
        yield _conflict(("rollout", "group_size"), what, "choose an even number")


def no_sets_rule(config: SteerConfig) -> Iterator[Problem]:
    """Steering weighs single samples."""
    for section, entries in (
        ("rewards", config.rewards),
        ("held_out_rewards", config.held_out_rewards),
    ):
        for index, entry in enumerate(entries):
            if is_set(entry):
                what = f"{entry.name} scores whole sets, and steering needs scores of samples"
                fix = "use `exemplar`, or `flowalign score` on the result"
                yield _conflict((section, index, "name"), what, fix)


def exemplars_rule(config: RunConfig | SteerConfig | NoisyRewardConfig) -> Iterator[Problem]:
    """Built-in exemplars have these names."""
    for section, entries in (
        ("rewards", config.rewards),
        ("held_out_rewards", config.held_out_rewards),
    ):
        for index, entry in enumerate(entries):
            source = entry.exemplars if isinstance(entry, ExemplarBase) else ""
            if (
                isinstance(source, str)
                and source.startswith("shapes:")
                and source not in BUILT_IN_EXEMPLARS
            ):
                what = f"the shapes world has no exemplars '{source}'"
                fix = f"allowed: {', '.join(BUILT_IN_EXEMPLARS)}"
                yield _conflict((section, index, "exemplars"), what, fix)
