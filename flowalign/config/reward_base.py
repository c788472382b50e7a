"""What the schemas of all rewards have. Torch-free."""

from __future__ import annotations

from flowalign.config.sampling import Section


class RewardBase(Section):
    """What every reward has."""

    label: str | None = None
    """Name of the term in metrics and galleries; the reward's name when absent."""
    weight: float = 1.0
    """Weight in the combined reward; negative to minimise."""
