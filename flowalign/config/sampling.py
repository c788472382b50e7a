"""Schema of the sampler and of the noise schedule. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A mapping in the file: unknown keys are errors, values immutable, numbers finite.

    Numbers are lax: `1e-5`, `10`, `10.0` and `"10"` are all accepted where they are exact.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class ConstantNoise(Section):
    """The same noise level at every step."""

    schedule: Literal["constant"] = "constant"


class LinearNoise(Section):
    """Falls linearly in progress from 1 to 0."""

    schedule: Literal["linear"]


class CosineNoise(Section):
    """(1 + cos(pi (1 - u))) / 2 of progress u."""

    schedule: Literal["cosine"]


class ExponentialNoise(Section):
    """exp(-rate (1 - u)) of progress u."""

    schedule: Literal["exponential"]
    rate: Annotated[float, Field(gt=0)] = 4.0
    """Decay over the whole trajectory, 3 to 5 in practice."""


class FirstKNoise(Section):
    """Noise in the first k steps, deterministic after: the optimum of a linear objective."""

    schedule: Literal["first_k"]
    k: Annotated[int, Field(ge=1)] = 3
    """Steps with noise."""


class HiCoGenNoise(Section):
    """eta_min + (eta_max - eta_min) times cosine (HiCoGen, arXiv 2511.19965)."""

    schedule: Literal["hicogen"]
    eta_max: Annotated[float, Field(gt=0)] = 1.0
    """Share of the level at the first step."""
    eta_min: Annotated[float, Field(ge=0)] = 0.0
    """Share of the level at the last step."""


class WindowNoise(Section):
    """Noise in a window of steps only (MixGRPO; Flow-GRPO-Fast), moving while training."""

    schedule: Literal["window"]
    size: Annotated[int, Field(ge=1)] = 4
    """Steps of the window."""
    start: Annotated[int, Field(ge=0)] = 0
    """First step of the window at the start of training."""
    move: Literal["progressive", "random", "fixed"] = "progressive"
    """Shift by `stride` every `interval` training steps, draw anew each step, or stay."""
    stride: Annotated[int, Field(ge=1)] = 1
    """Steps the window moves at once."""
    interval: Annotated[int, Field(ge=1)] = 25
    """Training steps between two moves."""


NoiseConfig = Annotated[
    ConstantNoise
    | LinearNoise
    | CosineNoise
    | ExponentialNoise
    | FirstKNoise
    | HiCoGenNoise
    | WindowNoise,
    Field(discriminator="schedule"),
]


class SamplerConfig(Section):
    """The transition kernel of rollouts."""

    name: Literal["ddim", "flow_sde", "cps", "dance", "ode"] = "ddim"
    """`ddim` keeps the marginals for every schedule and path and is the default."""
    num_steps: Annotated[int, Field(ge=1)] = 10
    """Steps of a rollout."""
    noise_level: Annotated[float, Field(ge=0)] = 0.7
    """The kernel's stochasticity (eta of ddim, a of flow_sde and cps, eta of dance)."""
    noise: NoiseConfig = ConstantNoise()
    """How the level changes over the steps."""
    normalise_budget: bool = True
    """Scale the schedule so that sum eta^2 |dsigma| equals that of the constant `noise_level`."""
    progress: Literal["sigma", "step"] = "sigma"
    """Progress u is measured on sigma, or on the step's index."""
