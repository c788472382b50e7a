"""Pictures of scenes: where things stand, and their antialiased drawing.

Slots keep the world small enough for a 2 M parameter model: one thing stands in the centre, two in
the halves (side by side or one above the other), three and four in the quadrants.
Letters: B pictures, H = W = 32 pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.worlds.shapes.geometry import coverage
from flowalign.worlds.shapes.scene import BACKGROUNDS, COLOURS, SHAPES, Scene

SIZE = 32  # pixels
JITTER = 0.75  # pixels, of a centre; two neighbours keep a gap of at least 2.5 pixels
COLOUR_JITTER = 6 / 255
# Radius range in pixels, by (alone in the picture, size word).
RADII = {
    (True, "large"): (8.5, 11.0),
    (True, "small"): (4.8, 5.8),
    (False, "large"): (5.4, 6.0),
    (False, "small"): (3.5, 4.1),
}
_SIDE_BY_SIDE = ((8.0, 16.0), (24.0, 16.0))
_STACKED = ((16.0, 8.0), (16.0, 24.0))
_QUADRANTS = ((8.0, 8.0), (24.0, 8.0), (8.0, 24.0), (24.0, 24.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """One thing in a picture: its shape, centre and radius in pixels, and its RGB in [0, 1]."""

    shape: str
    x: float
    y: float
    r: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One picture before drawing: background RGB in [0, 1] and the things on it."""

    background: tuple[float, float, float]
    things: tuple[Placed, ...]


def place(scene: Scene, generator: torch.Generator) -> Layout:
    """A random layout that satisfies `scene`: slots, jitter, radii and colour shades come from
    `generator`."""
    # One draw of a fixed length: the layout of a scene does not depend on how many things it has.
    draw = iter(torch.rand(40, generator=generator).tolist())
    ground = scene.background or list(BACKGROUNDS)[int(next(draw) * len(BACKGROUNDS))]
    slots = _slots(scene, [next(draw) for _ in range(5)])
    things = []
    for thing, (x, y) in zip(scene.things, slots, strict=True):
        low, high = RADII[len(scene.things) == 1, thing.size or "large"]
        things.append(
            Placed(
                shape=thing.shape,
                x=x + JITTER * (2 * next(draw) - 1),
                y=y + JITTER * (2 * next(draw) - 1),
                r=low + (high - low) * next(draw),
                rgb=_shade(COLOURS[thing.colour], [next(draw) for _ in range(3)]),
            )
        )
    return Layout(background=_shade(BACKGROUNDS[ground], [next(draw)] * 3), things=tuple(things))


def render(layouts: Sequence[Layout], size: int = SIZE) -> Tensor:
    """Float pictures (B, 3, size, size) in [0, 1]; `size` other than 32 scales the whole layout."""
    scale = size / SIZE
    images = torch.tensor([layout.background for layout in layouts])[:, :, None, None].repeat(
        1, 1, size, size
    )
    rank = 0
    # Things never overlap, so they may be painted shape by shape; the loop over ranks keeps indices
    # distinct.
    while any(len(layout.things) > rank for layout in layouts):
        for shape in SHAPES:
            rows = [
                i
                for i, layout in enumerate(layouts)
                if rank < len(layout.things) and layout.things[rank].shape == shape
            ]
            if not rows:
                continue
            things = [layouts[i].things[rank] for i in rows]
            x, y, r = (scale * torch.tensor([(t.x, t.y, t.r) for t in things])).unbind(1)
            rgb = torch.tensor([t.rgb for t in things])[:, :, None, None]
            alpha = coverage(shape, x=x, y=y, r=r, size=size)[:, None]
            index = torch.tensor(rows)
            images[index] = images[index] * (1 - alpha) + rgb * alpha
        rank += 1
    return images


def pictures(scenes: Sequence[Scene], generator: torch.Generator) -> Tensor:
    """One random picture for each scene, (B, 3, 32, 32) in [0, 1]."""
    return render([place(scene, generator) for scene in scenes])


def _slots(scene: Scene, draw: list[float]) -> list[tuple[float, float]]:
    """Slot centres in the order of `scene.things`."""
    number = len(scene.things)
    if number == 1:
        return [(SIZE / 2, SIZE / 2)]
    if number == 2:
        horizontal = (
            draw[0] < 0.5 if scene.relation is None else scene.relation in ("left of", "right of")
        )
        slots = list(_SIDE_BY_SIDE if horizontal else _STACKED)
        exchanged = (
            draw[1] < 0.5 if scene.relation is None else scene.relation in ("right of", "below")
        )
        return slots[::-1] if exchanged else slots
    order = sorted(range(4), key=lambda i: draw[1 + i])
    return [_QUADRANTS[i] for i in order[:number]]


def _shade(rgb: tuple[int, int, int], draw: list[float]) -> tuple[float, float, float]:
    red, green, blue = (
        value / 255 + COLOUR_JITTER * (2 * u - 1) for value, u in zip(rgb, draw, strict=True)
    )
    return tuple(min(max(value, 0.0), 1.0) for value in (red, green, blue))  # type: ignore[return-value]
