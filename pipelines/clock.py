"""Our level t in [0, 1] and the timestep with which a pipeline conditions its denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor

from flowalign.errors import ConfigError
from flowalign.paths import RectifiedFlow, VariancePreserving
from flowalign.pipelines.trigonometric import Trigonometric
from flowalign.protocols import Path

FINAL_ALPHA = (DDIMScheduler, PNDMScheduler, CogVideoXDDIMScheduler, CogVideoXDPMScheduler)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clock:
    """A path and how its level is told to the network.

    `timestep(t)` takes a 0-dim float64 level; `levels(scheduler)` reads (T+1,) float64 levels
    from a scheduler whose schedule is set. The network's output times `sign` is the path's
    native output.
    """

    path: Path
    sign: float
    timestep: Callable[[Tensor], Tensor]
    levels: Callable[[Any], Tensor]


def clock_of(scheduler: Any) -> Clock:
    """The clock of a scheduler whose schedule has been set once.

    Raises ConfigError when the scheduler belongs to no path we know.
    """
    if is_flow(scheduler):
        return flow_clock(scheduler)
    if "sigma_data" in scheduler.config:
        return trigonometric_clock(scheduler)
    try:
        alphas_cumprod = scheduler.alphas_cumprod
    except AttributeError:
        raise ConfigError(
            "MODEL-SCHEDULER",
            type(scheduler).__name__,
            "the scheduler is neither a rectified flow nor a variance-preserving diffusion",
            "give the pipeline a FlowMatchEuler, DDIM, PNDM, DDPM or Euler scheduler",
        ) from None
    return diffusion_clock(scheduler, alphas_cumprod)


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler integrates a rectified flow."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return True
    return scheduler.config.get("prediction_type") == "flow_prediction"


def flow_clock(scheduler: Any) -> Clock:
    """t is the scheduler's sigma; with `invert_sigmas` it is 1 - sigma and the sign flips."""
    num_train = scheduler.config.num_train_timesteps
    inverted = bool(scheduler.config.get("invert_sigmas", False))
    dtype = scheduler.timesteps.dtype

    def timestep(t: Tensor) -> Tensor:
        # float32 first: the same rounding as the scheduler's own sigmas * num_train_timesteps
        sigma = t.to(torch.float32)
        return ((1.0 - sigma if inverted else sigma) * num_train).to(dtype)

    def levels(scheduled: Any) -> Tensor:
        sigmas = scheduled.sigmas.to("cpu", torch.float64)
        return 1.0 - sigmas if inverted else sigmas

    sign = -1.0 if inverted else 1.0
    return Clock(path=RectifiedFlow(), sign=sign, timestep=timestep, levels=levels)


def diffusion_clock(scheduler: Any, alphas_cumprod: Tensor) -> Clock:
    """t = (k + 1) / N at train timestep k of N; t = 0 is the scheduler's final alpha."""
    num_train = len(alphas_cumprod)
    dtype = scheduler.timesteps.dtype
    final = float(scheduler.final_alpha_cumprod) if isinstance(scheduler, FINAL_ALPHA) else 1.0

    def timestep(t: Tensor) -> Tensor:
        step = t * num_train - 1.0
        whole = step.round()
        # between two training timesteps the embedding takes a fraction, as the path does
        return whole.to(dtype) if (step - whole).abs() < 1e-6 else step.to(torch.float32)

    def levels(scheduled: Any) -> Tensor:
        # PNDM repeats a timestep; a grid has each level once
        steps = torch.unique(scheduled.timesteps.to("cpu", torch.float64)).flip(0)
        return torch.cat([(steps + 1) / num_train, torch.zeros(1, dtype=torch.float64)])

    path = VariancePreserving(
        alphas_cumprod=alphas_cumprod.to("cpu", torch.float64),
        final_alpha_cumprod=final,
        prediction_type=scheduler.config["prediction_type"],
    )
    return Clock(path=path, sign=1.0, timestep=timestep, levels=levels)


def trigonometric_clock(scheduler: Any) -> Clock:
    """EDM preconditioning with sigma_data = 1: t = 2 / pi atan(sigma).

    The network sees c_in (x0 + sigma eps) = cos x0 + sin eps (arXiv 2206.00364, table 1); its
    timestep is the scheduler's own function of sigma.
    """
    config = scheduler.config
    if config.prediction_type != "v_prediction" or config.sigma_data != 1.0:
        raise ConfigError(
            "MODEL-SCHEDULER",
            type(scheduler).__name__,
            f"prediction {config.prediction_type!r} with sigma_data {config.sigma_data}",
            "only v_prediction with sigma_data 1 is a trigonometric path",
        )

    def timestep(t: Tensor) -> Tensor:
        sigma = torch.tan(0.5 * torch.pi * t)
        return scheduler.precondition_noise(sigma.to(torch.float32))

    def levels(scheduled: Any) -> Tensor:
        sigmas = scheduled.sigmas.to("cpu", torch.float64)
        return 2.0 / torch.pi * torch.atan(sigmas)

    return Clock(path=Trigonometric(), sign=1.0, timestep=timestep, levels=levels)
