"""Questions to a local vision-language model, in batches that do not change an answer.

N questions. Texts are padded on the right and the logits are read at each text's own last token:
a causal model never sees what stands behind it, so a question's answer does not depend on the
others of its batch, up to rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from flowalign.judges.pictures import frame_places
from flowalign.media import to_uint8
from flowalign.sample_failures import SampleFault
from flowalign.types import Sample
from flowalign.vlm.tokens import Answers, YesNo, answers_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An 8-bit picture."""

    image: Image.Image
    digest: str  # SHA-256 of its size and levels


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What one side says, in order."""

    parts: tuple[str | Picture, ...]
    role: Literal["user", "assistant"] = "user"


Question = tuple[Turn, ...]  # the last turn is the user's


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionLanguageModel:
    """A frozen causal model with its processor."""

    model: Any  # of transformers' AutoModelForImageTextToText
    processor: Any
    tokens: YesNo
    device: torch.device
    control: frozenset[str] = frozenset()  # special tokens, which no prompt may write
    batch_size: int = 8

    def answers(self, questions: Sequence[Question]) -> Answers:
        """What the first token of each answer says; equal questions are asked once."""
        keys = [_key(question) for question in questions]
        order = {key: question for key, question in zip(keys, questions, strict=True)}
        distinct = list(order.values())
        parts = [
            answers_of(self.next_logits(distinct[start : start + self.batch_size]), self.tokens)
            for start in range(0, len(distinct), self.batch_size)
        ]
        place = {key: row for row, key in enumerate(order)}
        rows = torch.tensor([place[key] for key in keys], dtype=torch.long)
        return Answers(
            yes=torch.cat([part.yes for part in parts])[rows],
            no=torch.cat([part.no for part in parts])[rows],
            whole=torch.cat([part.whole for part in parts])[rows],
        )

    @torch.no_grad()
    def next_logits(self, questions: Sequence[Question]) -> Tensor:
        """Logits (N, V) of the first token of each answer."""
        inputs = self.inputs(questions).to(self.device)
        last = inputs["attention_mask"].sum(1) - 1
        # Only where answers begin: over all places the logits would be larger than the model.
        places, row_of = last.unique(return_inverse=True)
        logits = self.model(**inputs, use_cache=False, logits_to_keep=places).logits
        return logits[torch.arange(len(row_of), device=logits.device), row_of]

    def inputs(self, questions: Sequence[Question]) -> Any:
        """Tensors for the model: the chat template ends where the answer begins.

        SampleFault for a text with a control token of the template or a picture's place.
        """
        # Here and not by transformers' `sanitize_control_tokens`, which the processors of Idefics3
        # and SmolVLM do not survive (5.23).
        for text in (p for q in questions for turn in q for p in turn.parts if isinstance(p, str)):
            if found := sorted(token for token in self.control if token in text):
                raise SampleFault(f"its text holds the model's control token {found[0]!r}")
        return self.processor.apply_chat_template(
            [[_message(turn) for turn in question] for question in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "right"},
        )


def picture(media: Tensor) -> Picture:
    """(3, H, W) in [0, 1] as 8 bits."""
    image = Image.fromarray(to_uint8(media))
    digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    return Picture(image=image, digest=digest)


def shown(sample: Sample, frames: int) -> tuple[Picture, ...]:
    """A picture, or `frames` evenly spaced frames of a video."""
    if sample.modality == "video":
        places = frame_places(len(sample.media), frames)
        return tuple(picture(sample.media[place]) for place in places)
    return (picture(sample.media),)


def _message(turn: Turn) -> dict[str, Any]:
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part.image}
        for part in turn.parts
    ]
    return {"role": turn.role, "content": content}


def _key(question: Question) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (turn.role, *(f"t{p}" if isinstance(p, str) else f"p{p.digest}" for p in turn.parts))
        for turn in question
    )
