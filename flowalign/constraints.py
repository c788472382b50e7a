"""Rewards with a level to keep instead of a weight: Lagrange multipliers that learn along.

Confronting reward model overoptimization with constrained RLHF (arXiv 2310.04373). Shapes: B
samples of all processes, N constraints. A multiplier is mu = sigmoid(rho) of an inequality and
mu = tanh(rho) of an equality; it grows while the mean reward J lies on the wrong side of theta.

How we differ: there the main term is the advantage of the KL penalty. Here the KL penalty stands
in the algorithm's loss, and the main term is the credit of the weighted rewards; without any, the
loss's KL alone is weighed against the constraints. The mixture is divided by N, so that its
scale, and the credit's clip, do not depend on how many constraints there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flowalign.advantages import group_advantages
from flowalign.config.shaping_constraints import ConstraintConfig, MultiplierConfig
from flowalign.types import Scored

MULTIPLIER = "shaping.multiplier."  # + label: (2,) float64, rho and its momentum buffer


def constrained(
    main: Tensor,
    counts: Tensor,
    scored: Scored,
    constraints: Sequence[ConstraintConfig],
    settings: MultiplierConfig,
    memory: dict[str, Tensor],
) -> Tensor:
    """Mixed credit (B,) float64 of `main` (B,) and the constrained rewards; multipliers step.

    Each is first made relative to its group and brought to unit scale over the samples that count.
    A reward below its level adds its advantage, one that must stay below adds the negative.
    """
    parts, mus = [], []
    for one in constraints:
        sign = -1.0 if one.kind == "at_most" else 1.0
        values = scored.terms[one.reward].double()
        parts.append(sign * group_advantages(values, counts, scored.group))
        state = memory.get(MULTIPLIER + one.reward, torch.zeros(2, dtype=torch.float64))
        mus.append(multiplier(state[0], one.kind))
        valid = scored.valid[one.reward]
        if valid.any():
            gap = sign * (values[valid].mean() - one.threshold)
            memory[MULTIPLIER + one.reward] = stepped(state, gap, one.kind, settings)
    return mixed(group_advantages(main, counts, scored.group), torch.stack(parts), torch.stack(mus))


def multiplier(rho: Tensor, kind: str) -> Tensor:
    """mu of rho: tanh(rho) of an equality, sigmoid(rho) of an inequality."""
    return rho.tanh() if kind == "equal" else rho.sigmoid()


def stepped(state: Tensor, gap: Tensor, kind: str, settings: MultiplierConfig) -> Tensor:
    """(rho, momentum buffer) after one SGD step down mu(rho) (J - theta), `gap` = J - theta.

    The slope of mu is mu (1 - mu) or 1 - mu^2, always positive: rho rises exactly while J < theta.
    """
    mu = multiplier(state[0], kind)
    slope = 1 - mu.square() if kind == "equal" else mu * (1 - mu)
    momentum = settings.momentum * state[1] + slope * gap
    return torch.stack([state[0] - settings.learning_rate * momentum, momentum])


def mixed(main: Tensor, parts: Tensor, mus: Tensor) -> Tensor:
    """((N - sum_i mu_i) A_main + sum_i mu_i A_i) / N; main (B,), parts (N, B), mus (N,)."""
    num = len(mus)
    return ((num - mus.sum()) * main + (mus[:, None] * parts).sum(dim=0)) / num


def multiplier_numbers(
    constraints: Sequence[ConstraintConfig], memory: Mapping[str, Tensor]
) -> dict[str, float]:
    """`shaping/mu/<label>` of each constraint: what the next step will weigh it with."""
    found = {}
    for one in constraints:
        state = memory.get(MULTIPLIER + one.reward, torch.zeros(2, dtype=torch.float64))
        found[f"shaping/mu/{one.reward}"] = float(multiplier(state[0], one.kind))
    return found
