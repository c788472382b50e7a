"""What a gallery reads from a run, as plain data. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Steps = Literal["auto", "all", "ends"] | tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One sample of an evaluation: a line of scores.jsonl."""

    prompt: str
    occurrence: int  # 0 for the first prompt of this text in the evaluation, 1 for the next
    category: str  # "" when it has none
    prompt_id: int
    sample_id: int
    seed: int
    media: str | None  # file name in the evaluation's folder
    scores: Mapping[str, float | None]  # None is invalid
    negative_prompt: str
    rationale: Mapping[str, str]  # a judge's reasons, by score

    @property
    def prompt_key(self) -> PromptKey:
        return self.prompt, self.occurrence

    @property
    def line_key(self) -> LineKey:
        """Samples of one prompt with equal keys started from the same noise."""
        return self.seed, self.sample_id


PromptKey = tuple[str, int]  # text, occurrence
LineKey = tuple[int, int]  # seed, sample_id
SampleKey = tuple[PromptKey, LineKey]


@dataclass(frozen=True, kw_only=True, slots=True)
class Particle:
    """One particle at one time of its population's history."""

    place: int  # its line in a drawing
    parent: tuple[int, int] | None  # (generation, number in it) that it came from
    reward: float | None  # None where it was not judged, or its reward is not valid
    weight: float | None = None  # share of the population before it was resampled


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """The particles of one population when they were looked at together."""

    title: str  # "start", "step 3", "end"
    note: str  # what was done with them: "resampled", or ""
    particles: tuple[Particle, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The history of one population, from its start to its end."""

    repeat: int  # which of the prompt's repetitions
    generations: tuple[Generation, ...]  # at least two
    returned: frozenset[int]  # numbers of the particles of the last one that the user gets


@dataclass(frozen=True, kw_only=True, slots=True)
class Steering:
    """What drew an evaluation's samples in a steering job, and what it took."""

    label: str
    plain: bool  # not steered: the baseline
    budget: int | None  # network evaluations allowed to a population
    particles: int | None
    populations: int | None  # prompts times repetitions
    costs: Mapping[str, float]  # sums over all populations


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation of a run, complete."""

    step: int
    folder: Path
    samples: Mapping[SampleKey, Score]  # in the file's order
    train_seconds: float | None  # training time before it
    trained: tuple[str, ...]
    held_out: tuple[str, ...]
    alarms: tuple[str, ...] = ()  # of the watch for reward hacking
    best_held_out: int | None = None  # step of the highest held-out rewards until then
    steering: Steering | None = None  # of a steering job
    families: Mapping[PromptKey, tuple[Family, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRow:
    """One training step of metrics.jsonl."""

    step: int
    seconds: float | None  # training time up to and with this step
    rewards: Mapping[str, float]  # mean over the step's samples, by reward


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One run directory, read."""

    name: str
    folder: Path
    evaluations: tuple[Evaluation, ...]  # by step, at least one
    training: tuple[TrainingRow, ...]
    config_yaml: str  # secrets blotted out
    settings: Mapping[str, str]  # flattened config: "train.steps" -> "40"
    lower_is_better: frozenset[str]  # scores with a negative weight
    facts: tuple[tuple[str, str], ...]  # status, version and the like, for the page's end
    notes: tuple[str, ...]  # what a reader of the page must know

    @property
    def steered(self) -> bool:
        """Whether a steering job made it."""
        return any(evaluation.steering is not None for evaluation in self.evaluations)

    @property
    def base(self) -> Evaluation | None:
        """The evaluation before training."""
        first = self.evaluations[0]
        return first if first.step == 0 else None
