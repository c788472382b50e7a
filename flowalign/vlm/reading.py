"""From the first token of an answer to a score, and when there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowalign.sample_failures import SampleFailuresError
from flowalign.vlm.tokens import Answers


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How the answers are read."""

    form: Literal["full", "two_token"] = "two_token"
    least_mass: float = 0.0  # of yes and no together; not used by `full`

    def __call__(self, answers: Answers) -> tuple[Tensor, dict[int, str]]:
        """(P(yes) (N,), why there is none by row)."""
        if self.form == "full":
            return answers.full, {}
        mass = answers.mass.tolist()
        reasons = {
            row: f"yes and no have {found:.1%} of the first token: the model says something else"
            for row, found in enumerate(mass)
            if found < self.least_mass
        }
        return answers.two_token, reasons


def scored(values: Tensor, reasons: Mapping[int, str]) -> tuple[Tensor, Tensor]:
    """(values (N,), valid (N,)) as a reward returns them; SampleFailuresError for `reasons`."""
    valid = torch.ones(len(values), dtype=torch.bool)
    if reasons:
        raise SampleFailuresError(values, valid, reasons)
    return values, valid
