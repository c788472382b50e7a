"""Schema of rewards that are one reward of a rule and a model. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.sampling import Section


class MixBase(Section):
    """What every mix has."""

    rule: str
    """Label (or name) of a reward in `rewards` with a range of [0, 1]; the mix takes its place."""
    model: str
    """Label (or name) of a reward in `rewards` of weight 0."""


class HybridMix(MixBase):
    """c rule + (1 - c) sigmoid((model - mean) / std), c the confidence in the rule."""

    name: Literal["hybrid"]
    confidence: Annotated[float, Field(ge=0, le=1)] | str | None = None
    """c: a number; the label of a reward in [0, 1] (the rule's own: right counts fully, the rest
    is the model's); when absent 1 where the rule has a score and 0 where it masks."""
    mean: float | None = None
    """Of the model's scores; with `std` the run's moving mean and std when absent."""
    std: Annotated[float, Field(gt=0)] | None = None
    """Of the model's scores."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Of moving statistics: a step counts this much less with each later step."""


class CorrectedMix(MixBase):
    """rule (model - neutral) + offset: the rule counts if the model likes the picture."""

    name: Literal["corrected"]
    neutral: float = 3.0  # the paper's, for ratings of 1 to 5
    """The model's score at which the rule is worth nothing; below, being right is bad."""
    offset: float = 0.2  # the paper's
    """Added to all."""


MixConfig = Annotated[HybridMix | CorrectedMix, Field(discriminator="name")]
