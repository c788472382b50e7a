"""Conflicts between offline data and the rest of a run."""

from __future__ import annotations

from collections.abc import Iterator

from flowalign.config.problems import Problem
from flowalign.config.regression import DPOConfig, RolloutLevels, RWRConfig, SFTConfig
from flowalign.config.schema import RunConfig

OFFLINE = ("sft", "rwr", "dpo")  # algorithms that learn from the samples of anybody


def data_rule(config: RunConfig) -> Iterator[Problem]:
    """Data take the place of rollouts and of their rewards; nothing else may be asked for."""
    data = config.data
    if data is None:
        yield from _rewards_needed(config)
        return
    algorithm = config.algorithm
    if algorithm.name not in OFFLINE:
        what = f"{algorithm.name} learns from samples that it has drawn itself, not from data"
        yield _conflict(("algorithm", "name"), what, f"use {', '.join(OFFLINE)}")
    if config.rewards:
        what = "with `data:` the data's labels are learned from, not rewards"
        yield _conflict(("rewards",), what, "move them to held_out_rewards, for evaluation")
    if not data.path.strip():
        yield _conflict(("data", "path"), "names no file", "name a file of pairs or samples")
    if data.dimensions and not any(data.dimensions.values()):
        what = "all weights are 0: no signal to learn from"
        yield _conflict(("data", "dimensions"), what, "give one of them a weight")
    if isinstance(algorithm, SFTConfig | RWRConfig | DPOConfig) and isinstance(
        algorithm.levels, RolloutLevels
    ):
        what = "`rollout` asks for the levels of a sampling schedule, and data have none"
        fix = "use density uniform or logit_normal"
        yield _conflict(("algorithm", "levels", "density"), what, fix)
    if isinstance(algorithm, SFTConfig | RWRConfig) and algorithm.control_variate:
        what = "takes the policy for the mean of its samples, and data were drawn by others"
        yield _conflict(("algorithm", "control_variate"), what, "leave it out")
    yield from _drawing(config)


def _rewards_needed(config: RunConfig) -> Iterator[Problem]:
    if config.rewards:
        return
    path = ("rewards",)
    if "rewards" in config.model_fields_set:
        what, fix = "needs at least one entry", "add one, or learn from `data:`"
        yield Problem(path=path, code="CFG-EMPTY", what=what, fix=fix)
    else:
        fix = "add `rewards: ...` (a weighted list), or learn from `data:`"
        yield Problem(path=path, code="CFG-MISSING", what="is missing", fix=fix)


def _drawing(config: RunConfig) -> Iterator[Problem]:
    """Keys about the drawing of samples, where none are drawn."""
    rollout = config.rollout
    given = {
        "same_initial_noise": rollout.same_initial_noise,
        "repeat_samples": rollout.repeat_samples,
        "policy": rollout.policy != "trained",
    }
    for name, told in given.items():
        if told:
            what = "says how samples are drawn, and with `data:` none are"
            yield _conflict(("rollout", name), what, "leave it out")


def _conflict(path: tuple[str, ...], what: str, fix: str) -> Problem:
    return Problem(path=path, code="CFG-CONFLICT", what=what, fix=fix)
