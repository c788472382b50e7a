"""Noise schedules: how stochastic each step of a rollout is.

Progress u is 1 at the first step and falls towards 0. Decaying schedules put the noise where it
decides what a picture shows; under a budget they are comparable with constant noise
(HiCoGen, arXiv 2511.19965, whose printed SDE keeps its full drift and so changes the marginals;
we give its eta(t) to a kernel that keeps them).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowalign.config.sampling import (
    ConstantNoise,
    CosineNoise,
    ExponentialNoise,
    FirstKNoise,
    HiCoGenNoise,
    LinearNoise,
    NoiseConfig,
    SamplerConfig,
    WindowNoise,
)
from flowalign.errors import ConfigError
from flowalign.randomness import generator

CAPPED = ("ddim", "cps")  # kernels whose noise level is a share: at most 1


def noise_levels(config: SamplerConfig, t: Tensor, *, training_step: int, seed: int) -> Tensor:
    """Noise level of each step, (T,) float64, for levels t (T+1,) that fall to 0.

    `config.noise_level` times the schedule's shape, or, with `normalise_budget`, the multiple of
    the shape whose budget sum eta_i^2 |t_i+1 - t_i| is that of the constant level. The step that
    reaches t = 0 is deterministic and outside the budget. The same on every rank.

    Raises:
        ConfigError: the schedule does not fit the number of steps, or the kernel's bound.
    """
    if config.name == "ode":
        return torch.zeros(len(t) - 1, dtype=torch.float64)
    t = t.double().cpu()
    free = (t[1:] > 0).double()
    wanted = schedule_shape(
        config.noise, progress(config, t), training_step=training_step, seed=seed
    )
    wanted = wanted * free
    cap = 1.0 if config.name in CAPPED else math.inf
    if isinstance(config.noise, ConstantNoise) or not config.normalise_budget:
        levels = config.noise_level * wanted
    else:
        weight = (t[:-1] - t[1:]) * free
        levels = spend(config.noise_level**2 * float(weight.sum()), wanted, weight, cap)
    if float(levels.max()) > cap:
        raise ConfigError(
            "CFG-NOISE",
            "sampler.noise_level",
            f"{config.name} takes at most {cap:g}, and a step would have {float(levels.max()):g}",
            f"set noise_level to at most {config.noise_level * cap / float(levels.max()):g}",
        )
    return levels


def progress(config: SamplerConfig, t: Tensor) -> Tensor:
    """u (T,): the step's level relative to the first, or 1 - i/T."""
    if config.progress == "sigma":
        return t[:-1] / t[0]
    steps = len(t) - 1
    return 1.0 - torch.arange(steps, dtype=torch.float64) / steps


def schedule_shape(noise: NoiseConfig, u: Tensor, *, training_step: int, seed: int) -> Tensor:
    """Relative noise e (T,) >= 0 of each step with progress u (T,)."""
    match noise:
        case ConstantNoise():
            return torch.ones_like(u)
        case LinearNoise():
            return u
        case CosineNoise():
            return cosine(u)
        case ExponentialNoise():
            return torch.exp(-noise.rate * (1.0 - u))
        case HiCoGenNoise():
            return noise.eta_min + (noise.eta_max - noise.eta_min) * cosine(u)
        case FirstKNoise():
            check_fits(noise.k, len(u), "sampler.noise.k", noise.k)
            return (torch.arange(len(u)) < noise.k).double()
        case WindowNoise():
            first = window_start(noise, len(u), training_step=training_step, seed=seed)
            steps = torch.arange(len(u))
            return ((steps >= first) & (steps < first + noise.size)).double()


def cosine(u: Tensor) -> Tensor:
    """(1 + cos(pi (1 - u))) / 2."""
    return 0.5 * (1.0 + torch.cos(math.pi * (1.0 - u)))


def window_start(noise: WindowNoise, num_steps: int, *, training_step: int, seed: int) -> int:
    """First step of the window at a training step (0, 1, ...).

    The window never holds the last step and is never cut: progressive motion starts again at
    `start` when it would not fit (MixGRPO, arXiv 2507.21802, whose code empties the window
    there). Random starts are keyed by (seed, training step), so all ranks share them
    (Flow-GRPO-Fast's code fixes one per rank for the whole run).
    """
    check_fits(noise.start + noise.size, num_steps, "sampler.noise", noise.size)
    places = (num_steps - 1 - noise.size - noise.start) // noise.stride + 1
    match noise.move:
        case "fixed":
            place = 0
        case "progressive":
            place = training_step // noise.interval % places
        case "random":
            key = generator(seed, "noise window", step=training_step)
            place = int(torch.randint(places, (), generator=key))
    return noise.start + noise.stride * place


def check_fits(end: int, num_steps: int, where: str, size: int) -> None:
    """Refuse noise in the last step or beyond it."""
    if end > num_steps - 1:
        raise ConfigError(
            "CFG-NOISE",
            where,
            f"{size} noisy steps end at step {end} of {num_steps}, and the last is never noisy",
            "take fewer noisy steps, or raise sampler.num_steps",
        )


def spend(budget: float, wanted: Tensor, weight: Tensor, cap: float) -> Tensor:
    """eta_i = min(cap, c e_i) with sum eta_i^2 w_i = budget: water filling over the capped steps.

    `wanted` e and `weight` w are (T,) float64, >= 0.

    Raises:
        ConfigError: even the cap at every step with e_i > 0 does not spend the budget.
    """
    if budget == 0.0:
        return torch.zeros_like(wanted)
    largest = cap**2 * float(weight[wanted > 0].sum())
    if budget > largest:
        raise ConfigError(
            "CFG-NOISE-BUDGET",
            "sampler.noise",
            f"the constant noise_level spends {budget:.4g}, this schedule at most {largest:.4g} "
            f"with every noisy step at {cap:g}",
            "lower noise_level, take more noisy steps, or set sampler.normalise_budget: false",
        )
    capped = torch.zeros_like(wanted, dtype=torch.bool)
    while True:
        rest = budget - cap**2 * float(weight[capped].sum()) if capped.any() else budget
        open_ = torch.where(capped, 0.0, wanted)
        power = float((open_.square() * weight).sum())
        # power is 0 when every step is at the cap, which then is the whole budget.
        scale = math.sqrt(max(rest, 0.0) / power) if power > 0 else 0.0
        over = scale * open_ > cap
        if not over.any():
            return torch.where(capped, cap, scale * open_)
        capped |= over
