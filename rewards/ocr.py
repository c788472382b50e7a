"""Text accuracy: does the picture read what the prompt has in quotes?

Measures   the text that RapidOCR reads in the picture against the quoted text of the prompt
           (`a shop with the sign "OPEN"`), both without white space and case (Unicode NFKC).
           t target, s text read, d Levenshtein's distance:
               r = 1 if t stands in s, else 1 - min(d(t, s), |t|) / |t|    the published form
               r = 1 - d(t, s) / max(|t|, |s|)                             with `strict: true`
           The first gives full marks to a picture full of text as long as the target is in it, and
           training finds that out; the second does not. Both ask for text and nothing else: watch
           a held-out reward.
Range      [0, 1], higher is better.
Source     Flow-GRPO (arXiv 2505.05470) section 4.1, visual text rendering. We differ: the target is
           all quoted spans one after the other (`spans: first` is theirs, equal for one span);
           curly quotes count too; RapidOCR in the place of PaddleOCR; of a video, the mean over
           frames in even distances (others leave frames without text out, which one legible
           frame can cheat).
Licence    this project's (Apache-2.0); RapidOCR and its PP-OCR models Apache-2.0.
Checkpoint none to fetch: PP-OCRv6 (small) comes inside RapidOCR's wheel and works offline.
Masks      a prompt without quoted text: there is nothing to read.
Differentiable: no. Group-only: no.
Cost       about 1 s a picture on one core, whatever its size.
Needs      the extra `ocr`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from flowalign.config.rewards_rules import OCRReward
from flowalign.errors import ResourceError
from flowalign.media import to_uint8
from flowalign.types import Modality, Sample

try:
    import onnxruntime  # noqa: F401 - RapidOCR asks for it at its first picture only
    from rapidocr import RapidOCR
except ImportError as error:
    raise ResourceError(
        "ENV-PACKAGE",
        "reward `ocr`",
        f"rapidocr with onnxruntime cannot be imported ({error})",
        'pip install "flowalign-diffusion[ocr]"',
    ) from error

QUOTED = re.compile(r'"([^"]*)"|\u201c([^\u201d]*)\u201d')  # "..." or curly

Spans = Literal["all", "first"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextAccuracy:
    """How well the quoted text of the prompt can be read in each picture."""

    read: Callable[[Tensor], str]  # text in a picture (3, H, W)
    strict: bool = False
    spans: Spans = "all"
    frames: int = 8  # of a video
    name: str = "ocr"
    modality: Modality = "image"
    differentiable: bool = False
    group_only: bool = False
    score_range: tuple[float, float] = (0.0, 1.0)

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(accuracy (N,), valid (N,)); a prompt without quoted text is masked, and not read."""
        targets = [target_of(sample.prompt, self.spans) for sample in samples]
        values = [
            self._score(target, sample.media) if target else torch.nan
            for target, sample in zip(targets, samples, strict=True)
        ]
        valid = torch.tensor([bool(target) for target in targets], dtype=torch.bool)
        return torch.tensor(values, dtype=torch.float32), valid

    def _score(self, target: str, media: Tensor) -> float:
        pictures = media.reshape(-1, *media.shape[-3:])
        shown = [pictures[place] for place in even_places(len(pictures), self.frames)]
        scores = [accuracy(target, plain(self.read(one)), strict=self.strict) for one in shown]
        return sum(scores) / len(scores)


def target_of(prompt: str, spans: Spans = "all") -> str:
    """The quoted text of a prompt, plain; empty where there is none."""
    found = [plain(straight or curly) for straight, curly in QUOTED.findall(prompt)]
    filled = [text for text in found if text]
    return "".join(filled if spans == "all" else filled[:1])


def plain(text: str) -> str:
    """Without white space and case, in Unicode's compatible composed form."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def accuracy(target: str, seen: str, *, strict: bool) -> float:
    """r in [0, 1] of a target that is not empty, see the top of this file."""
    if strict:
        return 1.0 - distance(target, seen) / max(len(target), len(seen))
    if target in seen:
        return 1.0
    return 1.0 - min(distance(target, seen), len(target)) / len(target)


def distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and replacements that make `b` of `a`."""
    previous = list(range(len(b) + 1))  # distances of a[:i] to each b[:j]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (x != y)))
        previous = row
    return previous[-1]


def even_places(num: int, wanted: int) -> list[int]:
    """At most `wanted` places of `num`, the middles of equal parts."""
    count = min(num, wanted)
    return [(2 * i + 1) * num // (2 * count) for i in range(count)]


def reader(confidence: float) -> Callable[[Tensor], str]:
    """RapidOCR on the CPU with torch's number of threads: lines in reading order, joined."""
    threads = torch.get_num_threads()
    engine: Any = RapidOCR(
        params={
            "Global.text_score": confidence,
            "Global.log_level": "critical",
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )

    def read(picture: Tensor) -> str:
        # A Pillow picture is RGB beyond doubt; a bare array would be taken for BGR.
        found = engine(Image.fromarray(to_uint8(picture)))
        return "".join(found.txts or ())

    return read


def from_config(config: OCRReward, *, device: torch.device) -> TextAccuracy:
    """The reward of a config; it reads on the CPU wherever the pictures are."""
    return TextAccuracy(
        read=reader(config.confidence),
        strict=config.strict,
        spans=config.spans,
        frames=config.frames,
        modality=config.modality,
    )
