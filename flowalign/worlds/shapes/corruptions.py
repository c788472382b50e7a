"""Captions that are wrong in exactly one respect: hard negatives for contrastive training and proxy
tests.

No torch here.
"""

import random
from dataclasses import replace

from flowalign.worlds.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    CONVERSE,
    MAX_THINGS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)

CORRUPTIONS: tuple[str, ...] = (
    "colour",
    "shape",
    "count",
    "binding",
    "relation",
    "background",
    "size",
)


def corrupt(scene: Scene, kind: str, rng: random.Random) -> Scene | None:
    """`scene` with one aspect made wrong, or None where it has no such aspect.

    `binding` exchanges the colours of two things, `relation` takes the converse, `count` changes
    the number.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"unknown corruption '{kind}'; allowed: {', '.join(CORRUPTIONS)}")
    if kind in ("colour", "shape", "size"):
        return _replace_word(scene, kind, rng)
    if kind == "count":
        if scene.category not in ("single", "count"):
            return None
        number = rng.choice([n for n in range(1, MAX_THINGS + 1) if n != len(scene.things)])
        return replace(scene, things=scene.things[:1] * number)
    if kind == "binding":
        return _exchange_colours(scene)
    if kind == "relation":
        return None if scene.relation is None else replace(scene, relation=CONVERSE[scene.relation])
    if scene.background is None:
        return None
    return replace(
        scene,
        background=rng.choice([ground for ground in BACKGROUNDS if ground != scene.background]),
    )


def _replace_word(scene: Scene, kind: str, rng: random.Random) -> Scene | None:
    if scene.category == "count":
        positions = list(range(len(scene.things)))
    else:
        positions = [rng.randrange(len(scene.things))]
    old: Thing = scene.things[positions[0]]
    word, allowed = {
        "colour": (old.colour, tuple(COLOURS)),
        "shape": (old.shape, SHAPES),
        "size": (old.size, SIZES),
    }[kind]
    if word is None:
        return None
    new = replace(old, **{kind: rng.choice([other for other in allowed if other != word])})
    if len(positions) == 1 and any(_same(new, thing) for thing in scene.things):
        return None
    things = tuple(new if i in positions else thing for i, thing in enumerate(scene.things))
    return replace(scene, things=things)


def _same(one: Thing, other: Thing) -> bool:
    return (one.colour, one.shape) == (other.colour, other.shape)


def _exchange_colours(scene: Scene) -> Scene | None:
    """None where the exchange gives the same things again (equal colours or equal shapes) in any
    order."""
    if len(scene.things) != 2:
        return None
    one, other = scene.things
    if one.colour == other.colour or one.shape == other.shape:
        return None
    things = (replace(one, colour=other.colour), replace(other, colour=one.colour))
    return replace(scene, things=things)
