"""The colour of an object: CLIP's choice among names, or the nearest of a palette.

Letters: D features, K colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flowalign.detection.objects import Found
from flowalign.similarity import TwoTowers

GREY = 0.6  # #999, painted around the object
# GenEval's zero-shot classifier averages these.
TEMPLATES = (
    "a photo of a {colour} {label}",
    "a photo of a {colour}-colored {label}",
    "a photo of a {colour} object",
)
# Ours, 8-bit sRGB.
PALETTE: Mapping[str, tuple[int, int, int]] = {
    "red": (205, 30, 35),
    "orange": (240, 130, 20),
    "yellow": (240, 215, 40),
    "green": (40, 150, 55),
    "blue": (40, 75, 205),
    "purple": (130, 40, 170),
    "pink": (250, 135, 190),
    "brown": (120, 75, 40),
    "black": (20, 20, 20),
    "white": (240, 240, 240),
}


class ColourNamer(Protocol):
    """What names the colour of an object."""

    @property
    def colours(self) -> tuple[str, ...]:
        """Every name that it can give."""
        ...

    def __call__(self, picture: Tensor, found: Found) -> str:
        """The colour of one object of a picture (3, H, W)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnColours:
    """The colours that the detector itself tells."""

    colours: tuple[str, ...]

    def __call__(self, picture: Tensor, found: Found) -> str:
        """As the detector says."""
        assert found.colour is not None, "only for detectors that know colours"
        return found.colour


@dataclass(frozen=True, kw_only=True, slots=True)
class NearestColour:
    """The nearest of a palette to the object's mean, by Euclidean distance in sRGB."""

    palette: Mapping[str, tuple[int, int, int]]

    @property
    def colours(self) -> tuple[str, ...]:
        return tuple(self.palette)

    def __call__(self, picture: Tensor, found: Found) -> str:
        """Over the object's mask, or over the middle half of its box where it has none."""
        if found.mask is not None and bool(found.mask.any()):
            mean = picture[:, found.mask.to(picture.device)].mean(-1)
        else:
            left, top, right, bottom = found.box
            inset = ((right - left) / 4, (bottom - top) / 4)
            middle = (left + inset[0], top + inset[1], right - inset[0], bottom - inset[1])
            mean = cut(picture, middle).mean((-2, -1))
        table = torch.tensor(list(self.palette.values()), dtype=torch.float32) / 255
        nearest = (table - mean.float().cpu()).square().sum(-1).argmin()
        return self.colours[int(nearest)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipColours:
    """CLIP's nearest text to the object's crop, with everything else painted grey (GenEval)."""

    towers: TwoTowers
    colours: tuple[str, ...]
    texts: dict[str, Tensor] = field(default_factory=dict)  # (K, D) of each label

    @torch.no_grad()
    def __call__(self, picture: Tensor, found: Found) -> str:
        """argmax_k cos(crop, mean of the templates of colour k and the label)."""
        shown = picture
        if found.mask is not None:
            shown = torch.where(found.mask.to(picture.device), picture, GREY)
        crop = cut(shown, found.box)[None].to(self.towers.device).float()
        seen = F.normalize(self.towers.picture_features(self.towers.preprocessing(crop)), dim=-1)
        return self.colours[int((seen.float() @ self._texts(found.label).T).argmax())]

    def _texts(self, label: str) -> Tensor:
        if label not in self.texts:
            rows = []
            for colour in self.colours:
                texts = [one.format(colour=colour, label=label) for one in TEMPLATES]
                encoded = torch.stack([self.towers.text_features(text).float() for text in texts])
                rows.append(F.normalize(F.normalize(encoded, dim=-1).mean(0), dim=-1))
            self.texts[label] = torch.stack(rows)
        return self.texts[label]


def cut(picture: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """The part of a picture (3, H, W) that a box touches; one pixel at least."""
    height, width = picture.shape[-2:]
    left, top = (
        min(max(math.floor(box[0]), 0), width - 1),
        min(max(math.floor(box[1]), 0), height - 1),
    )
    right = min(max(math.ceil(box[2]), left + 1), width)
    bottom = min(max(math.ceil(box[3]), top + 1), height)
    return picture[:, top:bottom, left:right]
