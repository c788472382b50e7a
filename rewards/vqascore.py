"""VQAScore: how surely a vision-language model says yes to "does this figure show the prompt?".

Measures   the probability of yes as the first word of the answer. Sees counts, relations and which
           attribute belongs to which object far better than CLIP; says little about beauty.
Range      [0, 1], higher is better. `form: full` is P(yes) under the softmax over all tokens, as
           published; `two_token` is P(yes) / (P(yes) + P(no)), which no other word can change. The
           two are different scales.
Masks      `two_token`: a sample where yes and no together are less probable than `least_mass`.
Source     VQAScore (arXiv 2404.01291, eq. 1). We differ: all spellings of yes count (casing, space
           before it); the prompt stands in the question as a JSON string.
Licence    of the checkpoint: `shapes` Apache-2.0 (this project), Qwen/Qwen2.5-VL-7B-Instruct
           Apache-2.0.
Checkpoint `shapes`: built in, 2.4 MB. Others: a folder or Hub id of a causal vision-language model
           with a chat template (Qwen2.5-VL, Qwen3-VL, InternVL, SmolVLM); pin `revision`.
Differentiable: no (pictures pass through the checkpoint's own 8-bit preprocessing).
           Group-only: no.
Cost       a forward pass a sample: about 10 ms for `shapes` on one core; 7 B parameters need a GPU
           with 16 GB in bfloat16 (about 50 ms).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.config.rewards_vlm import PLACE, VQAScoreReward
from flowalign.types import Modality, Sample
from flowalign.vlm.asking import Turn, VisionLanguageModel, shown
from flowalign.vlm.load import load_vlm
from flowalign.vlm.reading import Reading, scored


@dataclass(frozen=True, kw_only=True, slots=True)
class VQAScore:
    """P(yes) to one question about each sample."""

    vlm: VisionLanguageModel
    question: str  # with PLACE
    reading: Reading
    frames: int = 8
    name: str = "vqascore"
    modality: Modality = "image"
    differentiable: bool = False
    group_only: bool = False
    score_range: tuple[float, float] = (0.0, 1.0)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(P(yes) (N,), valid (N,)); SampleFailuresError where the answer is no yes or no."""
        answers = self.vlm.answers(
            [
                (Turn(parts=(*shown(sample, self.frames), asked(self.question, sample.prompt))),)
                for sample in samples
            ]
        )
        values, reasons = self.reading(answers)
        return scored(values, reasons)


def asked(template: str, prompt: str) -> str:
    """The template with the prompt in quotes, on one line."""
    return template.replace(PLACE, json.dumps(prompt, ensure_ascii=False))


def from_config(config: VQAScoreReward, *, device: torch.device) -> VQAScore:
    """The reward of a config."""
    return VQAScore(
        vlm=load_vlm(config, "vqascore", device),
        question=config.question,
        reading=Reading(form=config.form, least_mass=config.least_mass),
        frames=config.frames,
        modality=config.modality,
    )
