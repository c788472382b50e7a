"""Yes/no questions about pictures of the shapes world, with answers known from the layout.

No torch here. The words around a question are those of the rewards in
`flowalign.config.rewards_vlm`.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from flowalign.worlds.shapes.corruptions import CORRUPTIONS, corrupt
from flowalign.worlds.shapes.grammar import caption, split_of
from flowalign.worlds.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)

KINDS: tuple[str, ...] = (
    "prompt",
    "subject",
    "colour",
    "shape",
    "count",
    "relation",
    "background",
)
NUMBERS = ("one thing", "two things", "three things", "four things")
TRIES = 20  # corruptions of a scene that may not apply to it


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What one picture shows: every size and the background are known."""

    things: tuple[Thing, ...]
    centres: tuple[tuple[float, float], ...]  # x to the right and y down, pixels
    background: str

    def relation(self, first: int, second: int) -> str:
        """Where the first thing lies, seen from the second."""
        x = self.centres[first][0] - self.centres[second][0]
        y = self.centres[first][1] - self.centres[second][1]
        if abs(x) > abs(y):
            return "left of" if x < 0 else "right of"
        return "above" if y < 0 else "below"


def view(facts: Facts, rng: random.Random) -> Scene:
    """One true description in the grammar: with or without sizes, background and relation."""
    order = list(range(len(facts.things)))
    rng.shuffle(order)
    plain = {(thing.colour, thing.shape) for thing in facts.things}
    sized = len({thing.size for thing in facts.things}) == 1 or len(plain) == len(order)
    say_size = sized and rng.random() < 0.25
    things = tuple(
        facts.things[i] if say_size else replace(facts.things[i], size=None) for i in order
    )
    related = len(plain) == len(order) == 2 and rng.random() < 0.6
    return Scene(
        things=things,
        relation=facts.relation(*order) if related else None,
        background=facts.background if rng.random() < 0.25 else None,
    )


def wrong(scene: Scene, rng: random.Random) -> Scene:
    """`scene` made wrong in one respect; relations as often as all the others together."""
    for _ in range(TRIES):
        if scene.relation is not None and rng.random() < 0.5:
            others = [name for name in RELATIONS if name != scene.relation]
            return replace(scene, relation=rng.choice(others))
        if len(scene.things) > 1 and rng.random() < 0.2:
            return replace(scene, things=scene.things[1:], relation=None)
        found = corrupt(scene, rng.choice(CORRUPTIONS), rng)
        if found is not None:
            return found
    raise AssertionError(f"no corruption applies to {scene}")


def ask(facts: Facts, kind: str, answer: bool, rng: random.Random) -> str | None:
    """A question whose right answer is `answer`, or None where the picture allows none.

    Of `prompt` it is the prompt itself, of the training split only.
    """
    match kind:
        case "prompt":
            return _prompt(facts, answer, rng)
        case "subject":
            thing = _thing(facts, answer, rng)
            return None if thing is None else f"Is there {caption(Scene(things=(thing,)))}?"
        case "colour":
            word = _word(COLOURS, {thing.colour for thing in facts.things}, answer, rng)
            return f"Is there anything {word}?"
        case "shape":
            word = _word(SHAPES, {thing.shape for thing in facts.things}, answer, rng)
            return f"Is there a {word}?"
        case "count":
            word = _word(NUMBERS, {NUMBERS[len(facts.things) - 1]}, answer, rng)
            return f"Are there exactly {word}?"
        case "relation":
            return _relation(facts, answer, rng)
        case "background":
            word = _word(BACKGROUNDS, {facts.background}, answer, rng)
            return f"Is the background {word}?"
    raise ValueError(f"unknown kind '{kind}'; allowed: {', '.join(KINDS)}")


def describe(facts: Facts) -> str:
    """All that a picture shows, in reading order: dense supervision of a model in training."""
    order = sorted(range(len(facts.things)), key=lambda i: facts.centres[i][::-1])
    parts = []
    for i in order:
        thing, (x, y) = facts.things[i], facts.centres[i]
        where = [word for word in (_side(y, "above", "below"), _side(x, "left", "right")) if word]
        parts.append(" ".join([*where, thing.size or "large", thing.colour, thing.shape]))
    return f"{NUMBERS[len(order) - 1]} on {facts.background}, {', '.join(parts)}"


def vocabulary_texts() -> list[str]:
    """Texts that hold every word of the questions and descriptions."""
    return [
        "Is there anything? Is there a? Are there exactly? Is the background? Is the left of the?",
        "Describe. one thing on, two things on, three things on, four things on,",
        "Yes No yes no above below left right",
        *SIZES,
    ]


def _side(place: float, low: str, high: str) -> str | None:
    if 12 < place < 20:
        return None
    return low if place < 12 else high


def _prompt(facts: Facts, answer: bool, rng: random.Random) -> str | None:
    scene = view(facts, rng)
    text = caption(scene if answer else wrong(scene, rng))
    return text if split_of(text) == "train" else None


def _thing(facts: Facts, answer: bool, rng: random.Random) -> Thing | None:
    """A thing that is or is not there; an absent one shares a colour or a shape."""
    shown = [(thing.colour, thing.shape) for thing in facts.things]
    if answer:
        colour, shape = rng.choice(shown)
        return Thing(colour=colour, shape=shape)
    colours = [colour for colour, _ in shown] if rng.random() < 0.5 else list(COLOURS)
    shapes = [shape for _, shape in shown] if len(set(colours)) > len(shown) else list(SHAPES)
    colour, shape = rng.choice(colours), rng.choice(shapes)
    return None if (colour, shape) in shown else Thing(colour=colour, shape=shape)


def _relation(facts: Facts, answer: bool, rng: random.Random) -> str | None:
    names = [f"{thing.colour} {thing.shape}" for thing in facts.things]
    if len(names) != 2 or names[0] == names[1]:
        return None
    first = rng.randrange(2)
    word = _word(RELATIONS, {facts.relation(first, 1 - first)}, answer, rng)
    return f"Is the {names[first]} {word} the {names[1 - first]}?"


def _word(words: Iterable[str], true: set[str], answer: bool, rng: random.Random) -> str:
    return rng.choice([word for word in words if (word in true) == answer])
