"""The cosine of picture and prompt, by any model of two towers (CLIP and its kin).

Letters: N samples, B pictures of one call, D features, s the side of the model's input in pixels.
Source: CLIPScore (arXiv 2104.08718) equation 1, w max(cos, 0) with w = 2.5. We default to the plain
cosine (w = 1, no clamp), as reward fine-tuning does: the clamp has no gradient below 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flowalign.errors import warn
from flowalign.types import Modality, Sample

BATCH_SIZE = 64  # pictures of one forward pass
CACHED_PROMPTS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How a model wants its pictures."""

    side: int  # s
    mean: tuple[float, ...]  # of the three channels, on [0, 1]
    std: tuple[float, ...]
    # Keep proportions and crop the middle; do not keep them; or keep them and add black bars.
    resize: Literal["shortest", "squash", "pad"] = "shortest"
    short: int | None = None  # of `shortest`: the shorter side before the crop; s when absent
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, 3, s, s) from (B, 3, H, W) in [0, 1]; differentiable, and never clamped.

        Antialiased, as the models were trained: without it a reduced picture is far off (mean
        error .03 of a textured 1024 -> 224).
        """
        height, width = pictures.shape[-2:]
        size = self._size(height, width)
        if size != (height, width):
            pictures = F.interpolate(pictures, size, mode=self.interpolation, antialias=True)
        if self.resize == "pad":
            bars = self.side - size[0], self.side - size[1]
            top, left = bars[0] // 2, bars[1] // 2
            pictures = F.pad(pictures, (left, bars[1] - left, top, bars[0] - top))
            size = (self.side, self.side)
        top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        cropped = pictures[..., top : top + self.side, left : left + self.side]
        mean = torch.tensor(self.mean, dtype=cropped.dtype, device=cropped.device)
        std = torch.tensor(self.std, dtype=cropped.dtype, device=cropped.device)
        return (cropped - mean[:, None, None]) / std[:, None, None]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, before bars or crop."""
        if self.resize == "squash":
            return self.side, self.side
        if self.resize == "pad":
            scale = self.side / max(height, width)
            return max(round(height * scale), 1), max(round(width * scale), 1)
        short = self.short or self.side
        scale = short / min(height, width)
        return max(round(height * scale), short), max(round(width * scale), short)


class PictureTower(Protocol):
    """A frozen model that turns pictures into D features."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures become pixels of the picture tower."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def picture_features(self, pixels: Tensor) -> Tensor:
        """(B, D) of preprocessed pixels (B, 3, s, s); need not be of unit length."""
        ...


class TextTower(Protocol):
    """A frozen model that turns prompts into D features."""

    def text_features(self, prompt: str) -> Tensor:
        """(D,) of one prompt; need not be of unit length."""
        ...

    def lost_tokens(self, prompt: str) -> int:
        """How many tokens of the prompt the text tower does not see."""
        ...


class TwoTowers(PictureTower, TextTower, Protocol):
    """A picture tower and a text tower that meet in D features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CosineScore:
    """scale * cos(picture, prompt) + bias; clamped at 0 from below, or its sigmoid, on request."""

    name: str
    towers: TwoTowers
    scale: float = 1.0
    bias: float = 0.0
    clamp: bool = False
    sigmoid: bool = False
    modality: Modality = "image"
    differentiable: bool = True
    group_only: bool = False
    texts: dict[str, Tensor] = field(default_factory=dict)  # unit features (D,) of each prompt
    truncated: dict[str, int] = field(default_factory=dict)  # lost tokens of each cut prompt

    @property
    def score_range(self) -> tuple[float, float]:
        """Hard limits; real scores fill a small part of them."""
        limits = self._shaped(torch.tensor([-1.0, 1.0], dtype=torch.float64))
        return float(limits[0]), float(limits[1])

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(scores (N,) float32 on the CPU, valid (N,)); keeps the gradient of the media."""
        parts: list[Tensor] = []
        order: list[int] = []
        for rows in batches_by_size([sample.media for sample in samples]):
            pictures = torch.stack([samples[row].media for row in rows]).to(self.towers.device)
            pixels = self.towers.preprocessing(pictures.float())
            seen = F.normalize(self.towers.picture_features(pixels).float(), dim=-1)
            asked = torch.stack([self._text(samples[row].prompt) for row in rows])
            parts.append((seen * asked).sum(-1).cpu())
            order.extend(rows)
        if not parts:
            return torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        cosine = torch.cat(parts)[torch.tensor(order).argsort()]
        return self._shaped(cosine), torch.ones(len(samples), dtype=torch.bool)

    def _shaped(self, cosine: Tensor) -> Tensor:
        """Scores of cosines, any shape."""
        scores = self.scale * cosine + self.bias
        if self.sigmoid:
            return scores.sigmoid()
        return scores.clamp(min=0.0) if self.clamp else scores

    def _text(self, prompt: str) -> Tensor:
        return unit_text(self.towers, prompt, self.texts, self.truncated, reward=self.name)


@torch.no_grad()
def unit_text(
    towers: TextTower,
    prompt: str,
    texts: dict[str, Tensor],
    truncated: dict[str, int],
    *,
    reward: str,
) -> Tensor:
    """Unit features (D,), kept in `texts`; a cut prompt is counted in `truncated`.

    Each prompt is encoded alone, so that no batch changes its bits. Only the first cut one warns.
    """
    if prompt not in texts:
        if len(texts) >= CACHED_PROMPTS:
            texts.clear()
        lost = towers.lost_tokens(prompt)
        if lost and not truncated:
            what = f"the text tower does not see the last {lost} tokens of {prompt[:80]!r}"
            fix = "shorten it; further long prompts are counted, not printed"
            warn(f"reward `{reward}`", what, fix)
        if lost:
            truncated[prompt] = lost
        texts[prompt] = F.normalize(towers.text_features(prompt).float(), dim=-1)
    return texts[prompt]


def batches_by_size(media: Sequence[Tensor]) -> Iterator[list[int]]:
    """Row numbers of pictures of one size, at most BATCH_SIZE together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, picture in enumerate(media):
        groups.setdefault(tuple(picture.shape), []).append(row)
    for rows in groups.values():
        for start in range(0, len(rows), BATCH_SIZE):
            yield rows[start : start + BATCH_SIZE]
