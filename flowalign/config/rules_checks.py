"""Rewards by rule: keys that are possible one by one and impossible together. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from flowalign.config.noisy_reward import NoisyRewardConfig
from flowalign.config.problems import Problem
from flowalign.config.rewards_rules import GenEvalReward
from flowalign.config.schema import RunConfig
from flowalign.config.steering import SteerConfig
from flowalign.config.yaml12 import KeyPath

# Keys that say where a detector comes from: needed, and possible.
NEEDED = {
    "shapes": (),
    "transformers": ("model", "metadata"),
    "torchvision": ("model", "weights", "metadata"),
    "code": ("target", "metadata"),
}
OF_DETECTORS = {
    "shapes": (),
    "transformers": ("model", "revision"),
    "torchvision": ("model", "weights"),
    "code": ("target",),
}


def rules_rule(config: RunConfig | SteerConfig | NoisyRewardConfig) -> Iterator[Problem]:
    """Detectors of `geneval` have what they need and nothing of another."""
    for section, entries in (
        ("rewards", config.rewards),
        ("held_out_rewards", config.held_out_rewards),
    ):
        for index, entry in enumerate(entries):
            if isinstance(entry, GenEvalReward):
                yield from _detector(entry, (section, index))


def _detector(entry: GenEvalReward, path: KeyPath) -> Iterator[Problem]:
    given = {
        "model": entry.model,
        "revision": entry.revision,
        "weights": entry.weights,
        "target": entry.target,
        "metadata": entry.metadata,
    }
    kind = entry.detector
    for name in NEEDED[kind]:
        if given[name] is None:
            what = f"`detector: {kind}` needs `{name}`"
            fix = f"write `{name}: ...`, or `detector: shapes` for the built-in world"
            yield Problem(path=(*path, "detector"), code="CFG-MISSING", what=what, fix=fix)
    for name in ("model", "revision", "weights", "target"):
        if given[name] is not None and name not in OF_DETECTORS[kind]:
            owners = [owner for owner, names in OF_DETECTORS.items() if name in names]
            what = f"`{name}` does nothing with `detector: {kind}`"
            fix = f"remove it, or use `detector: {' or '.join(owners)}`"
            yield Problem(path=(*path, name), code="CFG-CONFLICT", what=what, fix=fix)
