"""Gradient ascent on the initial noise: ReNO, Eyring et al., arXiv 2406.04312, algorithm 1.

The reward of what a deterministic sampler makes of a noise is followed upwards, while a
regulariser keeps the noise as long as real noise is. The answer is the mode of the tilted law, a
point and not a sample. We differ: several steps as well as one; every sample is clipped by its own
gradient, so that its batch does not matter.

n samples, *S the shape of a noise, d its number of elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.errors import HealthError


@dataclass(frozen=True, kw_only=True, slots=True)
class Ascent:
    """How the noise is changed."""

    iterations: int
    learning_rate: float
    momentum: float
    clip_norm: float
    regularisation: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What noises became."""

    reward: Tensor  # (n,), with the graph; undefined where not valid
    valid: Tensor  # (n,) bool
    media: Tensor  # (n, ...)


@dataclass(frozen=True, kw_only=True, slots=True)
class Iterate:
    """One iteration of n samples; all (n,)."""

    reward: Tensor
    valid: Tensor
    objective: Tensor  # reward minus regulariser; -inf where not valid
    radius: Tensor  # |z|


@dataclass(frozen=True, kw_only=True, slots=True)
class Climb:
    """Where the objective was largest."""

    noise: Tensor  # (n, *S)
    media: Tensor  # (n, ...)
    history: Sequence[Iterate]  # before each change, and at the end


def optimised(
    draw: Callable[[Tensor], Drawn],
    noise: Tensor,
    ascent: Ascent,
    *,
    on_backward: Callable[[], None] = lambda: None,
) -> Climb:
    """Climb from `noise` (n, *S); `on_backward` is called after every backward pass."""
    z, velocity = noise.detach(), torch.zeros_like(noise)
    best, best_media = z, torch.empty(0)
    highest = torch.full((len(z),), -torch.inf, dtype=torch.float64)
    history: list[Iterate] = []
    for number in range(ascent.iterations + 1):
        last = number == ascent.iterations
        with torch.set_grad_enabled(not last):
            z = z.detach().requires_grad_(not last)
            drawn = draw(z)
            penalty = ascent.regularisation * radius_penalty(z)
            objective = torch.where(drawn.valid, drawn.reward.double(), 0.0) - penalty
        told = iterate(z, drawn, objective)
        history.append(told)
        better = told.objective > highest
        highest = torch.where(better, told.objective, highest)
        best = where_rows(better, z.detach(), best)
        media = drawn.media.detach()
        best_media = media if number == 0 else where_rows(better, media, best_media)
        if not last:
            gradient = clipped(gradient_of(objective, z, drawn.valid), ascent.clip_norm)
            on_backward()
            z, velocity = nesterov(z.detach(), velocity, gradient, ascent)
    return Climb(noise=best, media=best_media, history=history)


def radius_penalty(z: Tensor) -> Tensor:
    """|z|^2 / 2 - (d - 1) log |z| (n,) float64: minus the log-density of a normal vector's length,
    but for a constant; smallest at |z| = sqrt(d - 1)."""
    radius = z.cpu().double().flatten(1).norm(dim=1)  # not every device has float64
    return 0.5 * radius.square() - (z[0].numel() - 1) * radius.log()


def gradient_of(
    objective: Tensor, z: Tensor, valid: Tensor, *, where: str = "method noise_optimization"
) -> Tensor:
    """d objective / d z (n, *S), each sample's own; 0 where there is no valid reward.

    Raises:
        HealthError: a gradient is not finite.
    """
    if not objective.requires_grad:  # no sample has a reward
        return torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(objective, z, torch.ones_like(objective))
    gradient = where_rows(valid, gradient, torch.zeros_like(gradient))
    if not bool(gradient.isfinite().all()):
        what = "a gradient of the reward is not finite"
        raise HealthError("NON-FINITE", where, what, "use float32")
    return gradient


def clipped(gradient: Tensor, largest: float) -> Tensor:
    """Each sample's gradient (n, *S), shortened to the norm `largest` where it is longer."""
    norm = gradient.flatten(1).norm(dim=1).view(-1, *[1] * (gradient.ndim - 1))
    return torch.where(norm > largest, gradient * (largest / norm), gradient)


def nesterov(
    z: Tensor, velocity: Tensor, gradient: Tensor, ascent: Ascent
) -> tuple[Tensor, Tensor]:
    """z + lr (g + mu v'), v' = mu v + g: a step uphill with Nesterov's momentum, as in torch."""
    velocity = ascent.momentum * velocity + gradient
    return z + ascent.learning_rate * (gradient + ascent.momentum * velocity), velocity


def iterate(z: Tensor, drawn: Drawn, objective: Tensor) -> Iterate:
    """The record of an iteration."""
    return Iterate(
        reward=drawn.reward.detach().double().cpu(),
        valid=drawn.valid,
        objective=torch.where(drawn.valid, objective.detach(), -torch.inf),
        radius=z.detach().cpu().double().flatten(1).norm(dim=1),
    )


def where_rows(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`one` (n, ...) in these `rows` (n,), else `other`."""
    return torch.where(rows.to(one.device).view(-1, *[1] * (one.ndim - 1)), one, other)
