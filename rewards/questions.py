"""Question lists: the share of a prompt's own yes/no questions that a picture answers rightly.

Measures   what the questions ask: about the whole picture, its single subjects, and their
           relations (levels `global`, `subject`, `relation`). The mean of the right answers'
           probabilities within each level; then the weighted mean over the levels that the prompt
           has.
File       one JSON object a line (`.jsonl`), for example made once by a language model:
               {"prompt": "a red circle left of a blue square",
                "global": ["Are there exactly two things?"],
                "subject": ["Is there a red circle?", "Is there a blue square?"],
                "relation": ["Is the red circle left of the blue square?"]}
           A question whose right answer is no: {"question": "...", "answer": "no"}.
           `questions: shapes` asks for what a prompt of the built-in world says, but for sizes.
Range      [0, 1], higher is better.
Masks      a sample with an answer where yes and no together are less probable than `least_mass`.
Refuses    a prompt that is not in the file (`missing: prompt` asks whether it is shown instead).
Source     HiCoGen's hierarchical reward (arXiv 2511.19965). We differ: the levels' weighted mean
           where HiCoGen adds CLIP, HPS and DINO terms (combine the rewards `clip`, `hpsv2`, `dino`
           with this one); probabilities in the place of verdicts.
Licence    of the checkpoint: `shapes` Apache-2.0 (this project), Qwen/Qwen2.5-VL-3B-Instruct Qwen
           Research License.
Checkpoint as `vqascore`.
Differentiable: no. Group-only: no.
Cost       a forward pass a question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flowalign.config.rewards_vlm import ANSWER, QUESTION, QuestionsReward
from flowalign.errors import DataError
from flowalign.rewards.vqascore import asked
from flowalign.types import Modality, Sample
from flowalign.vlm.asking import Turn, VisionLanguageModel, shown
from flowalign.vlm.load import load_vlm
from flowalign.vlm.question_lists import YesNoQuestion, read_questions, shapes_questions
from flowalign.vlm.reading import Reading, scored


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """Weighted mean over levels of the mean probability of the right answers."""

    vlm: VisionLanguageModel
    questions_of: Callable[[str], Sequence[YesNoQuestion]]  # of a prompt; DataError for another
    weights: Mapping[str, float]  # of levels
    reading: Reading
    frames: int = 8
    name: str = "questions"
    modality: Modality = "image"
    differentiable: bool = False
    group_only: bool = False
    score_range: tuple[float, float] = (0.0, 1.0)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(score (N,), valid (N,)); SampleFailuresError where an answer is no yes or no."""
        lists = [self._heard(sample.prompt) for sample in samples]
        pictures = [shown(sample, self.frames) for sample in samples]
        probability, faults = self.reading(
            self.vlm.answers(
                [
                    (Turn(parts=(*picture, question.text)),)
                    for picture, listed in zip(pictures, lists, strict=True)
                    for question in listed
                ]
            )
        )
        values, reasons, start = [], {}, 0
        for row, listed in enumerate(lists):
            places = range(start, start + len(listed))
            start = places.stop
            right = [
                float(probability[place]) if question.wanted else 1 - float(probability[place])
                for place, question in zip(places, listed, strict=True)
            ]
            values.append(level_mean(right, [question.level for question in listed], self.weights))
            if bad := [place for place in places if place in faults]:
                reasons[row] = f"{listed[bad[0] - places.start].text!r}: {faults[bad[0]]}"
        return scored(torch.tensor(values, dtype=torch.float32), reasons)

    def _heard(self, prompt: str) -> list[YesNoQuestion]:
        """The questions of a prompt whose level has weight."""
        listed = [q for q in self.questions_of(prompt) if self.weights[q.level] > 0]
        if not listed:
            what = f"no question of a level with weight for '{prompt[:60]}'"
            raise DataError("DATA-EMPTY", "reward `questions`", what, "write one, or set a weight")
        return listed


def level_mean(
    right: Sequence[float], levels: Sequence[str], weights: Mapping[str, float]
) -> float:
    """sum_l w_l m_l / sum_l w_l over the levels that occur, m_l the mean of the level's values."""
    total = value = 0.0
    for level in dict.fromkeys(levels):
        own = [r for r, name in zip(right, levels, strict=True) if name == level]
        total += weights[level]
        value += weights[level] * sum(own) / len(own)
    return value / total


def from_config(config: QuestionsReward, *, device: torch.device) -> Questions:
    """The reward of a config."""
    return Questions(
        vlm=load_vlm(config, "questions", device),
        questions_of=_source(config),
        weights={
            "global": config.global_weight,
            "subject": config.subject_weight,
            "relation": config.relation_weight,
        },
        reading=Reading(form=config.form, least_mass=config.least_mass),
        frames=config.frames,
        modality=config.modality,
    )


def _source(config: QuestionsReward) -> Callable[[str], Sequence[YesNoQuestion]]:
    """Questions with what every instruction ends in."""
    if config.questions == "shapes":
        table, where = None, "reward `questions`: shapes"
    else:
        table, where = read_questions(Path(config.questions)), config.questions

    def questions_of(prompt: str) -> list[YesNoQuestion]:
        found = _of_the_world(prompt) if table is None else table.get(prompt)
        if found is not None:
            return [
                YesNoQuestion(text=f"{q.text} {ANSWER}", level=q.level, wanted=q.wanted)
                for q in found
            ]
        if config.missing == "prompt":
            return [YesNoQuestion(text=asked(QUESTION, prompt), level="global")]
        what = f"no questions for the prompt '{prompt[:80]}'"
        fix = 'add a line {"prompt": ...} for it, or set `missing: prompt`'
        raise DataError("DATA-KEY", where, what, fix)

    return questions_of


def _of_the_world(prompt: str) -> Sequence[YesNoQuestion] | None:
    try:
        return shapes_questions(prompt)
    except ValueError:
        return None
