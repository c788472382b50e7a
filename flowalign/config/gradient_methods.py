"""Schema of guidance by the rewards' gradient, and what may not be asked for. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.sampling import Section

Share = Annotated[float, Field(ge=0, le=1)]


class GuidanceConfig(Section):
    """Universal guidance (arXiv 2302.07121): each prediction moves up the gradient of rewards."""

    name: Literal["guidance"]
    strength: Annotated[float, Field(ge=0)] = 10.0
    """lambda: what is aimed at is p(x) exp(lambda r(x)), as with fk."""
    start: Share = 0.2
    """Share of the steps before the first guided one. Pure noise (t = 1) never is."""
    stop: Share = 1.0
    """Share of the steps after which none is guided."""
    recurrence: Annotated[int, Field(ge=0)] = 0
    """How often a guided step is noised again and repeated (self-recurrence)."""
    candidates: Annotated[int, Field(ge=1)] | None = None
    """Guided samples of each prompt, the best is returned; when absent what `budget` pays, 1
    without one."""
