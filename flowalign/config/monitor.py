"""Schema of the watch for reward hacking. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.sampling import Section


class MonitorConfig(Section):
    """What evaluations are watched for, and what an alarm does."""

    action: Literal["off", "warn", "stop", "rollback"] = "off"
    """Nothing; a warning; save and stop with exit code 9; or the same after going back to the
    checkpoint of the highest held-out rewards, which is kept as long as it is the best. Later
    states stay in checkpoints/hacked-*."""
    evaluations: Annotated[int, Field(ge=1)] = 3
    """Evaluations in a row in which held-out rewards lie below their best while the trained reward
    is above where it was then."""
    standard_errors: Annotated[float, Field(gt=0)] = 2.0
    """By how much, in standard errors of the paired difference."""
    min_diversity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Alarm below this share of the base's distance between pictures."""
    artefact_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Alarm when more than this share of pictures leaves the base's 99.5 % range of a statistic."""
    min_group_std: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Alarm when rewards within a group spread less than this share of the first step, and are
    higher."""
