"""Rewards with the gradient of the media. N samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowalign.errors import ConfigError, FlowalignError, RewardError
from flowalign.reward_call import Entry, first_line
from flowalign.scoring import RewardSuite
from flowalign.types import Sample


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

    Called directly, because a call that can be cut runs in a thread without gradients; what is
    returned to the user is scored by `RewardSuite.score` as well.
    """
    total = torch.zeros(len(samples), dtype=torch.float64)
    valid = torch.ones(len(samples), dtype=torch.bool)
    for entry in suite.entries:
        if entry.weight != 0:
            values, good = answer(entry, samples)
            valid &= good
            total = total + entry.weight * torch.where(good, values.double(), 0.0)
    return total, valid


def answer(entry: Entry, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """(values (N,), valid (N,)) of one reward.

    Raises:
        RewardError: it fails, or its values are not finite or carry no gradient.
    """
    try:
        found = entry.reward(samples)
    except FlowalignError:
        raise
    except Exception as error:
        fix = "repair it, or use a method without gradients"
        raise RewardError("RWD-RAISED", entry.where, first_line(error), fix) from error
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
    if not bool(values.detach().cpu()[good].isfinite().all()):
        what, fix = "returned a value that is not finite", "return a finite number or a mask"
        raise RewardError("RWD-NONFINITE", entry.where, what, fix)
    return values.cpu(), good
