"""Listening at the one place where every pipeline ends a step: `scheduler.step`.

There the prediction is already guided, whatever the pipeline's guidance rule. The listener is a
subclass of the pipeline's own scheduler class with the signatures of the base class, because
pipelines inspect them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

StepHeard = Callable[[Tensor, Tensor, Tensor], Tensor]


class Stop(Exception):  # noqa: N818 - not an error
    """Ends a pipeline's loop once everything wanted has been heard."""


def silent(scheduler: Any) -> None:
    """Nothing is to be done when the schedule is set."""


def unheard(output: Tensor, timestep: Tensor, x: Tensor) -> Tensor:
    """A step that must not happen."""
    raise AssertionError("the pipeline took a step where none was expected")


@functools.cache
def listening_class(base: type) -> type:
    """A subclass of scheduler class `base` whose schedule and step can be replaced.

    Instances carry `fixed` (None, or the (timesteps, sigmas) to offer), `on_schedule(scheduler)`
    and `on_step(model_output, timestep, sample) -> next sample`.
    """
    own_set_timesteps: Any = inspect.getattr_static(base, "set_timesteps")
    own_step: Any = inspect.getattr_static(base, "step")
    step_signature = inspect.signature(own_step)

    @functools.wraps(own_set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.fixed is None:
            own_set_timesteps(self, *args, **kwargs)
        else:
            self.timesteps, self.sigmas = self.fixed
            self.num_inference_steps = len(self.timesteps)
        self.on_schedule(self)

    @functools.wraps(own_step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = step_signature.bind(self, *args, **kwargs).arguments
        x_next = self.on_step(given["model_output"], given["timestep"], given["sample"])
        if given.get("return_dict", True):
            return SchedulerOutput(prev_sample=x_next)
        return (x_next, x_next)  # the second stands for a multistep scheduler's memory

    def scale_model_input(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return sample  # our state is already what the network sees, also for sigma-space schedulers

    members = {
        "set_timesteps": set_timesteps,
        "step": step,
        "scale_model_input": scale_model_input,
        "init_noise_sigma": 1.0,
        "fixed": None,  # a constructor may set its schedule already
        "on_schedule": staticmethod(silent),
        "on_step": staticmethod(unheard),
    }
    return type(f"Listening{base.__name__}", (base,), members)


def listener(
    scheduler: SchedulerMixin,
    *,
    fixed: tuple[Tensor, Tensor] | None = None,
    on_schedule: Callable[[Any], None] = silent,
    on_step: StepHeard = unheard,
) -> Any:
    """A listening copy of `scheduler` with the same config."""
    heard: Any = listening_class(type(scheduler)).from_config(scheduler.config)  # type: ignore[attr-defined]
    heard.fixed, heard.on_schedule, heard.on_step = fixed, on_schedule, on_step
    heard.init_noise_sigma = 1.0
    heard._begin_index = 0  # pipelines read it; ours is always at its first step
    return heard


def no_steps() -> tuple[Tensor, Tensor]:
    """A schedule without a step: the pipeline encodes, then decodes the latents it was given."""
    return torch.zeros(0), torch.zeros(1)
