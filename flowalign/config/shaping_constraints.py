"""Schema of rewards that have a level to keep instead of a weight. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.sampling import Section


class ConstraintConfig(Section):
    """A level that the mean of a reward should keep; a Lagrange multiplier takes care of it."""

    reward: str
    """Label (or name) of a reward in `rewards` of weight 0."""
    threshold: float
    """The level theta, in the reward's own units."""
    kind: Literal["at_least", "at_most", "equal"] = "at_least"
    """Mean >= theta or <= theta, with a multiplier in (0, 1); or mean = theta, with one in
    (-1, 1)."""


class MultiplierConfig(Section):
    """SGD on the multipliers' parameters, one step per training step."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-2
    """The paper's, for rewards that spread about 1 and thousands of steps; raise it for short
    runs."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The paper's."""
