"""RewardDance: how surely a vision-language model finds a sample better than reference pictures.

Measures   r(x, ref) = P(yes) / (P(yes) + P(no)) to "is the candidate better than the reference?",
           asked in both orders: 1/2 + (r(x, ref) - r(ref, x)) / 2, the mean over the references of
           the prompt. A model that prefers a place says 1/2 to everything then.
Context    `instruction` (what makes a picture good) stands before the question; `examples` are
           worked comparisons, with reasoning if there is any, shown before it.
References `.jsonl` rows {"prompt": ..., "image": "relative/path.png"}, or a folder of `flowalign
           sample`: good ones matter (the paper's best are the top 2 of 16 samples of the frozen
           start; more change little). `shapes` draws true pictures of the prompt.
Range      [0, 1], higher is better; exactly 1/2 for a sample that is the reference.
Masks      a sample with an answer where yes and no together are less probable than `least_mass`.
Refuses    a prompt without a reference.
Source     RewardDance (arXiv 2509.08826, eq. 3). We differ: both orders; all spellings count; the
           reasoning is given as context, not generated.
Licence    of the checkpoint: `shapes` Apache-2.0 (this project). The paper's models (InternVL, 1 B
           to 26 B) are not released; any causal vision-language model can be asked.
Checkpoint as `vqascore`. The built-in one compares little better than chance: it shows the use.
Differentiable: no. Group-only: no.
Cost       two forward passes with two pictures each for every reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.config.rewards_vlm import RewardDanceReward
from flowalign.rewards.vqascore import asked
from flowalign.types import Modality, Sample
from flowalign.vlm.asking import Picture, Question, Turn, VisionLanguageModel, shown
from flowalign.vlm.load import load_vlm
from flowalign.vlm.reading import Reading, scored
from flowalign.vlm.reference_pictures import Example, read_examples, references_by_prompt

Shown = tuple[Picture, ...]  # a picture, or the frames of a video


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardDance:
    """Mean probability of beating a prompt's references."""

    vlm: VisionLanguageModel
    references: Callable[[str], Sequence[Picture]]  # of a prompt
    question: str  # with PLACE
    reading: Reading
    instruction: str | None = None
    examples: Sequence[Example] = ()
    frames: int = 8
    name: str = "rewarddance"
    modality: Modality = "image"
    differentiable: bool = False
    group_only: bool = False
    score_range: tuple[float, float] = (0.0, 1.0)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(score (N,), valid (N,)); SampleFailuresError where an answer is no yes or no."""
        asked_of: list[int] = []
        wanted: list[Question] = []
        for row, sample in enumerate(samples):
            own = shown(sample, self.frames)
            for reference in self.references(sample.prompt):
                asked_of.append(row)
                wanted.append(self.compare(sample.prompt, own, (reference,)))
                wanted.append(self.compare(sample.prompt, (reference,), own))
        probability, faults = self.reading(self.vlm.answers(wanted))
        values = mean_by_row(
            both_orders(probability[0::2], probability[1::2]), asked_of, len(samples)
        )
        return scored(values, {asked_of[place // 2]: what for place, what in faults.items()})

    def compare(self, prompt: str, first: Shown, second: Shown) -> Question:
        """Whether the first is better than the second, after the examples."""
        turns = [
            turn
            for one in self.examples
            for turn in (
                self._turn(one.prompt, (one.candidate,), (one.reference,)),
                Turn(parts=(one.answer,), role="assistant"),
            )
        ]
        return (*turns, self._turn(prompt, first, second))

    def _turn(self, prompt: str, first: Shown, second: Shown) -> Turn:
        text = asked(self.question, prompt)
        if self.instruction is not None:
            text = f"{self.instruction}\n{text}"
        return Turn(parts=(*first, *second, text))


def both_orders(candidate_first: Tensor, reference_first: Tensor) -> Tensor:
    """(r(x, ref) + 1 - r(ref, x)) / 2, written so that equal answers give exactly 1/2."""
    return 0.5 + 0.5 * (candidate_first - reference_first)


def mean_by_row(values: Tensor, rows: Sequence[int], number: int) -> Tensor:
    """Mean (number,) of the values (M,) of each row; every row has one."""
    place = torch.tensor(rows, dtype=torch.long)
    total = torch.zeros(number).index_add_(0, place, values)
    return total / torch.bincount(place, minlength=number)


def from_config(config: RewardDanceReward, *, device: torch.device) -> RewardDance:
    """The reward of a config."""
    return RewardDance(
        references=references_by_prompt(config.references, config.max_references),
        examples=() if config.examples is None else read_examples(config.examples),
        vlm=load_vlm(config, "rewarddance", device),
        question=config.question,
        reading=Reading(form=config.form, least_mass=config.least_mass),
        instruction=config.instruction,
        frames=config.frames,
        modality=config.modality,
    )
