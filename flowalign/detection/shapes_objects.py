"""Objects of the shapes world's pictures, found by its verifier's own eyes.

Each object has three labels, so that prompts with two things of one shape can be told apart:
`circle`, `red circle` and `object`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.detection.clauses import COUNTING, Check, Exclude, Include
from flowalign.detection.objects import Found
from flowalign.similarity import batches_by_size
from flowalign.worlds.shapes.grammar import parse
from flowalign.worlds.shapes.render import SIZE
from flowalign.worlds.shapes.scene import COLOURS, SHAPES
from flowalign.worlds.shapes.verifier import verify

OBJECT = "object"
_ANY = "a red circle"  # what is found does not depend on the prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapesDetector:
    """Connected components with their nearest shape and colour."""

    @property
    def labels(self) -> frozenset[str]:
        """Shapes, coloured shapes, and `object`."""
        pairs = {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES}
        return frozenset({*SHAPES, *pairs, OBJECT})

    def __call__(self, pictures: Sequence[Tensor]) -> list[list[Found]]:
        """The objects of square pictures whose side is a multiple of 32 pixels."""
        rows: list[list[Found]] = [[] for _ in pictures]
        for places in batches_by_size(pictures):
            batch = torch.stack([pictures[place] for place in places])
            scale = batch.shape[-1] / SIZE
            for place, seen in zip(places, verify(batch, [_ANY] * len(batch)).found, strict=True):
                rows[place] = [
                    Found(
                        label=label,
                        box=tuple(scale * edge for edge in one.box),  # type: ignore[arg-type]
                        score=one.confidence,
                        colour=one.colour,
                    )
                    for one in seen
                    for label in (one.shape, f"{one.colour} {one.shape}", OBJECT)
                ]
        return rows


def check_of(prompt: str) -> Check:
    """What a prompt of the shapes world asks for, without sizes and background.

    The numbers are exact: one object more than asked for is excluded, of each kind and in all.
    Raises ValueError for a prompt outside the grammar.
    """
    scene = parse(prompt)
    numbers = Counter((thing.colour, thing.shape) for thing in scene.things)
    of_shape = Counter(shape for _, shape in numbers)
    kinds = list(numbers)
    if scene.relation is not None:
        kinds = [(thing.colour, thing.shape) for thing in reversed(scene.things)]
    include = []
    for place, (colour, shape) in enumerate(kinds):
        alone = of_shape[shape] == 1
        include.append(
            Include(
                label=shape if alone else f"{colour} {shape}",
                count=1 if scene.relation is not None else numbers[colour, shape],
                colour=colour if alone else None,
                position=(scene.relation, 0) if scene.relation is not None and place else None,
            )
        )
    exclude = [Exclude(label=one.label, count=one.count + 1) for one in include]
    exclude.append(Exclude(label=OBJECT, count=len(scene.things) + 1))
    tag = COUNTING if scene.category == "count" else scene.category
    return Check(include=tuple(include), exclude=tuple(exclude), tag=tag)
