"""Level grids: from noise to data, (T + 1,) float64, strictly decreasing, ending in 0.

On a rectified flow the level is sigma itself. On a variance-preserving path training timestep k
of N has level (k + 1) / N.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from flowalign.paths import VariancePreserving


def shifted(t: Tensor, shift: float) -> Tensor:
    """shift t / (1 + (shift - 1) t): more steps near the noise (SD3, arXiv 2403.03206, eq. 23)."""
    return shift * t / (1.0 + (shift - 1.0) * t)


def flow_levels(num_steps: int, shift: float = 1.0) -> Tensor:
    """Uniform levels from 1 to 0, then shifted, as DanceGRPO uses them (arXiv 2505.07818)."""
    return shifted(torch.linspace(1.0, 0.0, num_steps + 1, dtype=torch.float64), shift)


def diffusers_flow_levels(
    num_steps: int, shift: float = 1.0, *, num_train_timesteps: int = 1000
) -> Tensor:
    """The table of diffusers' FlowMatchEulerDiscreteScheduler with a static shift.

    The training table is shifted, its two ends span a uniform grid, and that grid is shifted
    again. The last level before 0 is therefore not on the grid of `flow_levels`.
    """
    smallest = shifted(torch.tensor(1.0 / num_train_timesteps, dtype=torch.float64), shift)
    grid = torch.linspace(1.0, float(smallest), num_steps, dtype=torch.float64)
    return _to_zero(shifted(grid, shift))


def flux_levels(num_steps: int, mu: float) -> Tensor:
    """FLUX's grid: 1 .. 1/T, then the exponential shift e^mu / (e^mu + 1/t - 1)."""
    grid = torch.linspace(1.0, 1.0 / num_steps, num_steps, dtype=torch.float64)
    return _to_zero(shifted(grid, math.exp(mu)))


def flux_mu(image_tokens: int) -> float:
    """FLUX's resolution-dependent mu: 0.5 at 256 image tokens, 1.15 at 4096, linear."""
    return 0.5 + (image_tokens - 256) * (1.15 - 0.5) / (4096 - 256)


def diffusion_timesteps(
    num_steps: int,
    *,
    num_train_timesteps: int = 1000,
    spacing: Literal["leading", "trailing", "linspace"] = "leading",
    steps_offset: int = 0,
) -> list[int]:
    """Training timesteps of T sampling steps, decreasing (arXiv 2305.08891, table 2)."""
    n = num_train_timesteps
    match spacing:
        case "leading":
            return [i * (n // num_steps) + steps_offset for i in reversed(range(num_steps))]
        case "trailing":
            return [round(n - i * n / num_steps) - 1 for i in range(num_steps)]
        case "linspace":
            return [
                round(float(k)) for k in torch.linspace(n - 1, 0, num_steps, dtype=torch.float64)
            ]


def diffusion_levels(timesteps: Sequence[float], num_train_timesteps: int) -> Tensor:
    """Levels (k + 1) / N of training timesteps k, then 0."""
    return _to_zero((torch.tensor(timesteps, dtype=torch.float64) + 1.0) / num_train_timesteps)


def karras_ratios(num_steps: int, smallest: float, largest: float, rho: float = 7.0) -> Tensor:
    """Noise-to-signal ratios uniform in ratio^(1/rho) (arXiv 2206.00364, eq. 5), (T,) without 0."""
    ramp = torch.linspace(0.0, 1.0, num_steps, dtype=torch.float64)
    low, high = smallest ** (1.0 / rho), largest ** (1.0 / rho)
    return (high + ramp * (low - high)) ** rho


def exponential_ratios(num_steps: int, smallest: float, largest: float, rho: float = 1.0) -> Tensor:
    """Noise-to-signal ratios whose logarithm falls as (1 - progress)^rho, (T,) without 0."""
    ramp = torch.linspace(1.0, 0.0, num_steps, dtype=torch.float64) ** rho
    return torch.exp(ramp * math.log(largest / smallest) + math.log(smallest))


def vp_sde_ratios(
    num_steps: int, *, beta_min: float = 0.1, beta_d: float = 19.9, smallest_time: float = 1e-3
) -> Tensor:
    """Noise-to-signal ratios of the continuous VP-SDE at uniform times (arXiv 2011.13456)."""
    time = torch.linspace(1.0, smallest_time, num_steps, dtype=torch.float64)
    return torch.expm1(0.5 * beta_d * time.square() + beta_min * time).sqrt()


def levels_of_ratios(path: VariancePreserving, ratios: Tensor) -> Tensor:
    """Levels at which sigma / alpha of `path` equals each of `ratios` (T,), then 0.

    Raises nothing for ratios outside the table: they are an `AssertionError`.
    """
    falling, wanted = path.table, 1.0 / (1.0 + ratios.double().square())
    assert bool((wanted >= falling[-1]).all() and (wanted < falling[0]).all()), "outside the table"
    high = torch.searchsorted(-falling, -wanted).clamp(1, len(falling) - 1)
    fraction = (falling[high - 1] - wanted) / (falling[high - 1] - falling[high])
    return _to_zero((high - 1 + fraction) / (len(falling) - 1))


def _to_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])
