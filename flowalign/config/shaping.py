"""Schemas of what happens to rewards before they become credit. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.sampling import Section
from flowalign.config.shaping_constraints import ConstraintConfig, MultiplierConfig
from flowalign.config.shaping_mixes import MixConfig

Combine = Literal["sum", "min", "product", "mean", "median", "lower_bound"]


class ShapeBase(Section):
    """What every shape has."""

    reward: str
    """Label (or name) of the reward in `rewards`."""


class MovingShape(ShapeBase):
    """(reward - moving mean) / moving std over the run; the statistics are in checkpoints."""

    name: Literal["moving"]
    decay: Annotated[float, Field(gt=0, le=1)] = 0.99
    """A step's scores count this much less with each later step; 1 counts all steps alike."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-4
    """Added to the std."""


class PARShape(ShapeBase):
    """Mean of sigmoid(scale (reward - that of a reference sample)): Preference As Reward."""

    name: Literal["par"]
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Steepness: about 1 over the reward's spread within a prompt (50 for a CLIP cosine)."""
    references: Annotated[int, Field(ge=1, le=64)] = 4
    """Samples of the frozen start per prompt, drawn and scored when the prompt first comes."""


class WinRateShape(ShapeBase):
    """Share of the other samples of the prompt that a sample beats, ties half."""

    name: Literal["win_rate"]
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Scores that differ by at most this are a tie."""


class RangeShape(ShapeBase):
    """(reward - low) / (high - low), held in [0, 1]."""

    name: Literal["range"]
    low: float | None = None
    """Becomes 0; the lower end of the reward's own range when absent."""
    high: float | None = None
    """Becomes 1; the upper end of the reward's own range when absent."""


ShapeConfig = Annotated[
    MovingShape | PARShape | WinRateShape | RangeShape, Field(discriminator="name")
]


class GateConfig(Section):
    """A veto: below the threshold nothing else can make a sample good."""

    reward: str
    """Label (or name) of the reward in `rewards`; its weight may be 0."""
    threshold: float
    """Samples of a lower score, as the reward gives it, are vetoed."""
    value: float | None = None
    """Combined reward of a vetoed sample unless it is lower anyway; the gate's score when
    absent."""


class ShapingConfig(Section):
    """How several rewards become one."""

    combine: Combine = "sum"
    """Weighted sum; the smallest weighted reward; the product of rewards in [0, 1], each to the
    power of its weight (of 1 - reward where the weight is negative); or of an ensemble, whose
    rewards are all brought to one scale by `rewards` below, the mean, the median, or
    `lower_bound`: the mean less their disagreement."""
    uncertainty: Annotated[float, Field(ge=0)] = 1.0
    """Standard deviations among the rewards that `lower_bound` takes off."""
    rewards: tuple[ShapeConfig, ...] = ()
    """What is done to single rewards first; at most one shape for each."""
    mixes: tuple[MixConfig, ...] = ()
    """Rule and model as one reward, in the place of the rule's; before anything else."""
    gates: tuple[GateConfig, ...] = ()
    """Vetoes on the combined reward; the lowest counts."""
    constraints: tuple[ConstraintConfig, ...] = ()
    """Rewards of weight 0 that should keep a level while the others are raised. Credit then is in
    standard deviations."""
    multipliers: MultiplierConfig = MultiplierConfig()
    """How fast the constraints' multipliers follow."""
