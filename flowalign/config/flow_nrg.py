"""Schema of Flow-NRG guidance. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.sampling import Section

Level = Annotated[float, Field(ge=0, le=1)]


class FlowNRGConfig(Section):
    """Guidance by a reward network on noisy latents (Flow-NRG, arXiv 2501.13918)."""

    name: Literal["flow_nrg"]
    reward: str
    """A folder that `flowalign reward train-noisy` wrote."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Weight of each head, for example `{colour: 1, relation: 2}`: heads left out have 0, and below
    0 less is better. When empty, every head has 1."""
    candidates: Annotated[int, Field(ge=1)] | None = None
    """Guided samples of each prompt, of which the best by `rewards` is kept; when absent what
    `budget` pays, 1 without one."""
    strength: Annotated[float, Field(ge=0)] = 10.0
    """lambda: samples target p(x) exp(lambda sum of weight times reward), as with fk."""
    start: Level = 0.98
    """Level below which samples are guided; at 1, pure noise, the factor t / (1 - t) diverges."""
    stop: Level = 0.0
    """Level above which samples are guided."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest sigma / alpha, which is t / (1 - t) on a rectified flow; the gradient is scaled down
    where it is larger. A clip weakens the tilt."""
