"""What a method hands back: one population for each prompt and repetition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from flowalign.media import to_uint8
from flowalign.prompts import Prompt
from flowalign.steering.costs import Costs
from flowalign.types import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """The finished particles of one prompt, n of them, and how they came about."""

    prompt: Prompt
    repeat: int  # 0, 1, ... of samples_per_prompt
    samples: Sequence[Sample]  # n
    reward: Tensor  # (n,) float64; undefined where not valid
    valid: Tensor  # (n,) bool
    terms: Mapping[str, Tensor]  # (n,) each, by reward
    log_weight: Tensor | None  # (n,) float64, log of weights of sum 1; None where all count alike
    log_z: float | None  # estimate of log E exp(lambda r)
    history: Sequence[Mapping[str, Any]]  # JSON values, one for each time particles were judged
    returned: Sequence[int]  # places in `samples` of what the user gets


@dataclass(frozen=True, kw_only=True, slots=True)
class Steered:
    """All populations of one method, and what they took."""

    label: str  # the method's name, or what the config calls it
    method: str
    budget: int | None  # network evaluations each population was allowed
    particles: int  # of a population at its start
    populations: Sequence[Population]
    scores: Mapping[str, Tensor]  # (m,) each, of what is returned; NaN where not valid
    costs: Costs

    @property
    def samples(self) -> list[Sample]:
        """What the user gets, m of them: prompt by prompt, repetition by repetition."""
        return [group.samples[place] for group in self.populations for place in group.returned]

    @property
    def images(self) -> list[Image.Image]:
        """The samples of a picture model as PIL images."""
        return [Image.fromarray(to_uint8(sample.media)) for sample in self.samples]

    def mean(self, name: str) -> float:
        """Mean of a score over valid samples; NaN when there is none."""
        return float(self.scores[name].double().nanmean())


@dataclass(frozen=True, kw_only=True, slots=True)
class SteerResult:
    """Steered samples, with plain ones of the same seeds where they were asked for."""

    steered: Steered  # by `method` at `budget`
    columns: Sequence[Steered]  # `steered`, and what was compared with it, by budget
    baseline: Steered | None
    run: Path | None  # the directory, where one was written

    @property
    def samples(self) -> list[Sample]:
        """The steered samples."""
        return self.steered.samples

    @property
    def images(self) -> list[Image.Image]:
        """The steered samples as PIL images."""
        return self.steered.images
