"""Exact verifier: does a picture show what its prompt says? It sees pixels only.

Objects are the connected components of the foreground; each is fitted by the five ideal shapes and
compared with the eight palette colours; named things are matched to objects by the best assignment.
The score is a product, so a picture earns it by being right in everything, and each factor is
graded, so that learning sees a direction.
Letters: B pictures, N objects of all pictures, K = 4 named things at most, M = 6 objects at most, C
colours, S shapes, P assignments, H = W = 32 pixels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from flowalign.worlds.shapes.components import MAX_COMPONENTS, Components, find_components
from flowalign.worlds.shapes.geometry import UNIT_AREA
from flowalign.worlds.shapes.grammar import parse
from flowalign.worlds.shapes.render import SIZE
from flowalign.worlds.shapes.scene import BACKGROUNDS, COLOURS, MAX_THINGS, RELATIONS, SHAPES, Scene
from flowalign.worlds.shapes.templates import (
    colour_confidence,
    ground_confidence,
    shape_confidence,
    shape_fit,
)
from flowalign.worlds.shapes.verdict import Found, Verdict

CHUNK = 64  # pictures at a time, to bound memory
SUBJECT_POWER = 1.7  # one right thing of two gives 0.31, two of three 0.50
WRONG_SHAPE_CREDIT = 0.12  # of a thing with the right colour: colour alone shows a direction
WRONG_SIZE_CREDIT = 0.4
EXTRA_FACTOR, MISSING_FACTOR = 0.6, 0.8  # per object; a missing one also lowers the subject score
STRAY_FREE, STRAY_SPAN, STRAY_FLOOR = 4, 60, 0.5  # pixels, pixels, lowest factor
BACKGROUND_FLOOR, RELATION_FLOOR = 0.4, 0.3
# Radius in pixels between small and large, alone in the picture or not.
SIZE_LIMIT = {True: 7.15, False: 4.75}
SIZE_SOFTNESS = 0.12  # pixels
STRICT_COLOUR, STRICT_FIT = 0.6, 0.72

# (P, K), every one-to-one choice of objects for the named things.
_ASSIGNMENTS = torch.tensor(list(itertools.permutations(range(MAX_COMPONENTS), MAX_THINGS)))
# Unit vector from the second to the first thing, (x, y) with y down.
_DIRECTIONS = {
    "left of": (-1.0, 0.0),
    "right of": (1.0, 0.0),
    "above": (0.0, -1.0),
    "below": (0.0, 1.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Objects:
    """Evidence about all objects, laid out per picture; absent ones are zero."""

    colour: Tensor  # (B, M, C) share of the interior
    shape: Tensor  # (B, M, S) confidence
    fit: Tensor  # (B, M, S) intersection over union
    radius: Tensor  # (B, M, S) pixels, if it were that shape
    centre: Tensor  # (B, M, 2) x, y in pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What the prompts name."""

    things: Tensor  # (B, K) bool, named at all
    colour: Tensor  # (B, K) int64
    shape: Tensor  # (B, K) int64
    size: Tensor  # (B, K), -1 small, 0 not named, 1 large
    limit: Tensor  # (B,) radius between small and large in pixels
    direction: Tensor  # (B, 2) unit vector from the second to the first thing, 0 without relation
    background: Tensor  # (B,) int64, -1 not named


def verify(images: Tensor, prompts: Sequence[str]) -> Verdict:
    """Score pictures (B, 3, H, W) in [0, 1], H = W a multiple of 32, against their prompts.

    Larger pictures are reduced to 32 pixels by averaging. The verdict on a picture does not depend
    on the batch.

    Raises:
        ValueError: a picture is not finite or leaves [0, 1], a shape is wrong, or a prompt is not
        of the grammar.
    """
    scenes = [parse(prompt) for prompt in prompts]
    pictures = checked(images, len(scenes))
    parts = [
        _verify_chunk(pictures[i : i + CHUNK], scenes[i : i + CHUNK])
        for i in range(0, len(scenes), CHUNK)
    ]
    return Verdict(
        score=torch.cat([part.score for part in parts]),
        strict=torch.cat([part.strict for part in parts]),
        global_score=torch.cat([part.global_score for part in parts]),
        subject=torch.cat([part.subject for part in parts]),
        relation=torch.cat([part.relation for part in parts]),
        has_relation=torch.cat([part.has_relation for part in parts]),
        found=tuple(itertools.chain.from_iterable(part.found for part in parts)),
    )


def checked(images: Tensor, number: int) -> Tensor:
    """The pictures as (B, 3, 32, 32) float32 on the CPU, or ValueError."""
    if images.ndim != 4 or images.shape[1] != 3 or len(images) != number or number == 0:
        raise ValueError(
            f"expected one (3, H, W) picture for each of {number} prompts, at least one, "
            f"got {tuple(images.shape)}"
        )
    side = images.shape[-1]
    if images.shape[-2] != side or side % SIZE != 0 or side == 0:
        raise ValueError(
            f"pictures must be square, the side a multiple of {SIZE}, got {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise ValueError(f"pictures must be float in [0, 1], got {images.dtype}")
    pictures = images.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(pictures).all()):
        raise ValueError("pictures contain values that are not finite")
    low, high = float(pictures.min()), float(pictures.max())
    if low < 0 or high > 1:
        raise ValueError(f"pictures must lie in [0, 1], got values from {low:.4g} to {high:.4g}")
    return F.avg_pool2d(pictures, side // SIZE) if side > SIZE else pictures


def _verify_chunk(images: Tensor, scenes: list[Scene]) -> Verdict:
    components = find_components(images)
    objects = _objects(images, components)
    asked = _asked(scenes)
    quality, right = _match_table(objects, asked)
    chosen = _assign(quality)
    matched = quality.gather(2, chosen[:, :, None])[:, :, 0]
    number = asked.things.sum(1)
    subject = matched.sum(1) / number
    difference = components.number - number
    extra, missing = difference.clamp_min(0), (-difference).clamp_min(0)
    stray_loss = (components.stray - STRAY_FREE).clamp_min(0) / STRAY_SPAN
    ground = _ground(components.background, asked.background)
    global_score = (
        EXTRA_FACTOR**extra
        * MISSING_FACTOR**missing
        * (1 - stray_loss).clamp_min(STRAY_FLOOR)
        * (BACKGROUND_FLOOR + (1 - BACKGROUND_FLOOR) * ground)
    )
    has_relation = asked.direction.any(1)
    placed, ordered = _relation(objects.centre, chosen, asked.direction)
    relation = torch.where(has_relation, placed * matched[:, :2].amin(1), torch.zeros(()))
    factor = torch.where(
        has_relation, RELATION_FLOOR + (1 - RELATION_FLOOR) * relation, torch.ones(())
    )
    all_right = (right.gather(2, chosen[:, :, None])[:, :, 0] | ~asked.things).all(1)
    strict = (
        all_right
        & (difference == 0)
        & (components.stray <= STRAY_FREE)
        & (ground >= 0.5)
        & (ordered | ~has_relation)
    )
    return Verdict(
        score=subject**SUBJECT_POWER * global_score * factor,
        strict=strict,
        global_score=global_score,
        subject=subject,
        relation=relation,
        has_relation=has_relation,
        found=_found(components, objects, len(images)),
    )


def _objects(images: Tensor, components: Components) -> _Objects:
    matte = components.matte
    fit = shape_fit(matte)
    area = matte.sum((1, 2))
    pixel = torch.arange(matte.shape[-1], dtype=torch.float32) + 0.5
    x = (matte * pixel[None, None, :]).sum((1, 2)) / area.clamp_min(1e-3)
    y = (matte * pixel[None, :, None]).sum((1, 2)) / area.clamp_min(1e-3)
    units = torch.tensor([UNIT_AREA[shape] for shape in SHAPES])

    def spread(values: Tensor) -> Tensor:
        table = torch.zeros(len(images), MAX_COMPONENTS, values.shape[1])
        table[components.picture, components.slot] = values
        return table

    return _Objects(
        colour=spread(colour_confidence(images[components.picture], components.interior)),
        shape=spread(shape_confidence(fit)),
        fit=spread(fit),
        radius=spread((area[:, None] / units).sqrt()),
        centre=spread(torch.stack([x, y], dim=1)),
    )


def _asked(scenes: list[Scene]) -> _Asked:
    colours, grounds, sizes = (
        list(COLOURS),
        list(BACKGROUNDS),
        {"small": -1.0, "large": 1.0, None: 0.0},
    )
    things = torch.zeros(len(scenes), MAX_THINGS, dtype=torch.bool)
    colour, shape = (torch.zeros(len(scenes), MAX_THINGS, dtype=torch.int64) for _ in range(2))
    size = torch.zeros(len(scenes), MAX_THINGS)
    for row, scene in enumerate(scenes):
        for column, thing in enumerate(scene.things):
            things[row, column] = True
            colour[row, column] = colours.index(thing.colour)
            shape[row, column] = SHAPES.index(thing.shape)
            size[row, column] = sizes[thing.size]
    return _Asked(
        things=things,
        colour=colour,
        shape=shape,
        size=size,
        limit=torch.tensor([SIZE_LIMIT[len(scene.things) == 1] for scene in scenes]),
        direction=torch.tensor(
            [_DIRECTIONS[scene.relation] if scene.relation else (0.0, 0.0) for scene in scenes]
        ),
        background=torch.tensor(
            [grounds.index(scene.background) if scene.background else -1 for scene in scenes]
        ),
    )


def _match_table(objects: _Objects, asked: _Asked) -> tuple[Tensor, Tensor]:
    """How well each object is each named thing (B, K, M) in [0, 1], and whether it is it exactly,
    bool."""

    def pick(table: Tensor, index: Tensor) -> Tensor:
        return table.transpose(1, 2).gather(1, index[:, :, None].expand(-1, -1, MAX_COMPONENTS))

    colour, shape = pick(objects.colour, asked.colour), pick(objects.shape, asked.shape)
    above = (pick(objects.radius, asked.shape) - asked.limit[:, None, None]) * asked.size[
        :, :, None
    ]
    named_size = (asked.size != 0)[:, :, None]
    size_right = torch.sigmoid(above / SIZE_SOFTNESS)
    size = torch.where(
        named_size, WRONG_SIZE_CREDIT + (1 - WRONG_SIZE_CREDIT) * size_right, torch.ones(())
    )
    quality = (
        colour
        * (WRONG_SHAPE_CREDIT + (1 - WRONG_SHAPE_CREDIT) * shape)
        * size
        * asked.things[:, :, None]
    )
    right = (objects.colour.argmax(2)[:, None] == asked.colour[:, :, None]) & (
        colour >= STRICT_COLOUR
    )
    right &= (objects.fit.argmax(2)[:, None] == asked.shape[:, :, None]) & (
        pick(objects.fit, asked.shape) >= STRICT_FIT
    )
    right &= ~named_size | (above > 0)
    return quality, right


def _assign(quality: Tensor) -> Tensor:
    """Object index (B, K) for each named thing: the one-to-one choice of largest total quality."""
    things = torch.arange(MAX_THINGS)
    total = quality[:, things[None], _ASSIGNMENTS].sum(2)
    return _ASSIGNMENTS[total.argmax(1)]


def _relation(centre: Tensor, chosen: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Graded (B,) in [0, 1] and exact (B,) bool: the first thing lies in `direction` of the
    second."""
    index = torch.arange(len(centre))
    offset = centre[index, chosen[:, 0]] - centre[index, chosen[:, 1]]
    along = (offset * direction).sum(1)
    across = (offset[:, 0] * direction[:, 1] - offset[:, 1] * direction[:, 0]).abs()
    # 16 pixels along and none across when right; 10 or more are full marks, 4 the wrong way none.
    return ((along - across + 4) / 14).clamp(0, 1), (along > 4) & (along > across)


def _ground(background: Tensor, asked: Tensor) -> Tensor:
    """Confidence (B,) in [0, 1] that the background is the named one; 1 where none is named."""
    confidence = ground_confidence(background)
    named = confidence.gather(1, asked.clamp_min(0)[:, None])[:, 0]
    return torch.where(asked < 0, torch.ones(()), named)


def _found(components: Components, objects: _Objects, number: int) -> tuple[tuple[Found, ...], ...]:
    colours = list(COLOURS)
    rows: list[list[Found]] = [[] for _ in range(number)]
    for picture, slot, mask in zip(
        components.picture.tolist(), components.slot.tolist(), components.mask, strict=True
    ):
        colour, shape = (
            int(objects.colour[picture, slot].argmax()),
            int(objects.fit[picture, slot].argmax()),
        )
        columns, lines = mask.any(0).nonzero()[:, 0], mask.any(1).nonzero()[:, 0]
        rows[picture].append(
            Found(
                colour=colours[colour],
                shape=SHAPES[shape],
                box=(int(columns[0]), int(lines[0]), int(columns[-1]) + 1, int(lines[-1]) + 1),
                radius=float(objects.radius[picture, slot, shape]),
                confidence=float(
                    objects.colour[picture, slot, colour] * objects.shape[picture, slot, shape]
                ),
            )
        )
    return tuple(tuple(row) for row in rows)


assert set(_DIRECTIONS) == set(RELATIONS)
