"""Objects that a detector found: overlap, suppression, and where one lies to another.

Boxes are (left, top, right, bottom) in pixels, y down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from flowalign.detection.clauses import RELATIONS

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One object in a picture."""

    label: str
    box: Box
    score: float  # [0, 1]
    mask: Tensor | None = None  # (H, W) bool, its pixels
    colour: str | None = None  # where the detector knows it


@runtime_checkable
class Detector(Protocol):
    """What finds objects in pictures."""

    @property
    def labels(self) -> frozenset[str]:
        """Every label that it can give."""
        ...

    def __call__(self, pictures: Sequence[Tensor]) -> Sequence[Sequence[Found]]:
        """The objects in each picture (3, H, W) in [0, 1], in any order."""
        ...


def kept(found: Sequence[Found], *, confidence: float, max_objects: int, nms: float) -> list[Found]:
    """Objects of one label, most confident first: those above `confidence`, at most `max_objects`.

    `nms` < 1: one that overlaps a better one by an IoU of `nms` or more is left out.
    """
    order = sorted((one for one in found if one.score > confidence), key=lambda one: -one.score)
    chosen: list[Found] = []
    for one in order:
        if nms >= 1.0 or all(overlap(one.box, other.box) < nms for other in chosen):
            chosen.append(one)
    return chosen[:max_objects]


def overlap(a: Box, b: Box) -> float:
    """Intersection over union; a box of whole pixels counts its last row and column."""

    def area(box: Box) -> float:
        return max(box[2] - box[0] + 1, 0.0) * max(box[3] - box[1] + 1, 0.0)

    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = area(a) + area(b) - shared
    return shared / union if union else 0.0


def relations(a: Box, b: Box, *, margin: float = 0.1) -> frozenset[str]:
    """Where box `a` lies to box `b`: up to two of RELATIONS.

    GenEval (arXiv 2310.11513), section 3: d = centre(a) - centre(b), each part shortened by
    `margin` times the two boxes' sizes together; a part that is more than half of |d| names a
    relation.
    """
    d = ((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2)
    room = (
        margin * (abs(a[2] - a[0]) + abs(b[2] - b[0])),
        margin * (abs(a[3] - a[1]) + abs(b[3] - b[1])),
    )
    x, y = (
        math.copysign(max(abs(part) - free, 0.0), part) for part, free in zip(d, room, strict=True)
    )
    if max(abs(x), abs(y)) < 1e-3:  # pixels
        return frozenset()
    x, y = x / math.hypot(*d), y / math.hypot(*d)
    true = (x < -0.5, x > 0.5, y < -0.5, y > 0.5)
    return frozenset(name for name, holds in zip(RELATIONS, true, strict=True) if holds)
