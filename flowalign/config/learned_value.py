"""Schema of a learned value of states on their way. Torch-free."""

from __future__ import annotations

from pydantic import Field

from flowalign.config.sampling import Section


class LearnedValueConfig(Section):
    """A network on noisy latents judges states, in the place of rewards of predicted ends."""

    reward: str
    """A folder that `flowalign reward train-noisy` wrote."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each head, best those of `rewards`: heads left out have 0. When empty, every head
    has 1."""
