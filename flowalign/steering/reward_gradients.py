"""Rewards with the gradient of the media. N samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowalign.errors import ConfigError, FlowalignError, RewardError
from flowalign.reward_call import Entry, Failure, first_line
from flowalign.scoring import RewardSuite
from flowalign.types import Sample

RAISED = "RWD-RAISED"


def check_differentiable(suite: RewardSuite, method: str) -> None:
    """Every reward that counts must carry a gradient.

    Raises:
        ConfigError: one does not.
    """
    for entry in suite.entries:
        if entry.weight != 0 and not entry.reward.differentiable:
            what = f"{method} follows gradients, and {entry.where} has none"
            fix = "use a differentiable reward, for example clip, or another method"
            raise ConfigError("CFG-CONFLICT", "rewards", what, fix)


def graded(suite: RewardSuite, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """(reward (N,) float64 with the graph, valid (N,)): the weighted sum of the suite's terms.

    The suite's failure policy holds, its time limit does not: a call that can be cut runs in a
    thread without gradients. What is returned to the user is scored by `RewardSuite.score` as well.
    """
    total = torch.zeros(len(samples), dtype=torch.float64)
    valid = torch.ones(len(samples), dtype=torch.bool)
    for entry in suite.entries:
        if entry.weight != 0:
            values, good = answer(entry, samples, suite.failure)
            valid &= good
            total = total + entry.weight * torch.where(good, values.double(), 0.0)
    return total, valid


def answer(entry: Entry, samples: Sequence[Sample], failure: Failure) -> tuple[Tensor, Tensor]:
    """(values (N,), valid (N,)) of one reward; with `drop` failing samples are masked.

    Raises:
        RewardError: it fails under `raise`, or for all samples; its answer has a wrong form.
    """
    try:
        values, good = asked(entry, samples)
    except RewardError as error:
        if failure == "raise" or error.code != RAISED or entry.reward.group_only:
            raise
        values, good = one_by_one(entry, samples)
    broken = good & ~values.detach().isfinite()
    if failure == "raise" and bool(broken.any()):
        what, fix = "returned a value that is not finite", "return a finite number or a mask"
        raise RewardError("RWD-NONFINITE", entry.where, what, fix)
    if bool(broken.all()):
        what = f"all {len(samples)} samples failed: no value is finite"
        raise RewardError("RWD-ALL-FAILED", entry.where, what, "repair the reward")
    return values, good & ~broken


def one_by_one(entry: Entry, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """The same where the batch fails: each sample alone, those that fail masked.

    Raises:
        RewardError: all fail.
    """
    found: list[tuple[Tensor, Tensor]] = []
    errors: list[RewardError] = []
    for sample in samples:
        try:
            found.append(asked(entry, [sample]))
        except RewardError as error:
            if error.code != RAISED:
                raise
            errors.append(error)
            found.append((torch.zeros(1), torch.zeros(1, dtype=torch.bool)))
    if len(errors) == len(samples):
        what = f"all {len(samples)} samples failed: {errors[0].what}"
        raise RewardError("RWD-ALL-FAILED", entry.where, what, "repair the reward") from errors[0]
    return torch.cat([values for values, _ in found]), torch.cat([good for _, good in found])


def asked(entry: Entry, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """What the reward says, its form checked.

    Raises:
        RewardError: it fails, or its values carry no gradient.
    """
    try:
        found = entry.reward(samples)
    except FlowalignError:
        raise
    except Exception as error:
        fix = "repair it, use `reward_failure: drop`, or a method without gradients"
        raise RewardError(RAISED, entry.where, first_line(error), fix) from error
    values, valid = found if isinstance(found, tuple) else (found, None)
    good = torch.ones(len(samples), dtype=torch.bool) if valid is None else valid.cpu()
    if values.shape != (len(samples),) or good.shape != values.shape:
        what = f"returned shape {tuple(values.shape)} for {len(samples)} samples"
        fix = "return one number for each sample, in order"
        raise RewardError("RWD-SHAPE", entry.where, what, fix)
    if torch.is_grad_enabled() and bool(good.any()) and not values.requires_grad:
        what = "is called differentiable, and its values carry no gradient"
        fix = "leave the graph on, or set differentiable to False"
        raise RewardError("RWD-GRAD", entry.where, what, fix)
    return values.cpu(), good
