"""Prompts of the shapes world: scene to text, text to scene, and the train / held-out split.

No torch here, so that prompts can be listed at once.

    a [small|large] COLOUR SHAPE [on a BACKGROUND background]
    THING and THING          THING, THING and THING
    two|three|four [SIZE] COLOUR SHAPEs
    THING left of|right of|above|below THING
"""

import functools
import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Iterator

from flowalign.worlds.shapes.scene import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)

SPLITS: tuple[str, ...] = ("train", "heldout")
HELDOUT_FRACTION = 0.15  # of compositions
# Another salt is another split. This one holds out six single things, each shape at least once.
SALT = "shapes-184"
COUNT_WORDS: dict[str, int] = {"two": 2, "three": 3, "four": 4}

_ARTICLES = ("a", "an")
_PLURALS = {"cross": "crosses"} | {shape: shape + "s" for shape in SHAPES if shape != "cross"}
_SINGULAR = {plural: shape for shape, plural in _PLURALS.items()}
_BACKGROUND = re.compile(r"^(?P<body>.+?) on an? (?P<colour>\S+) background$")
_RELATION = re.compile(
    r"^(?P<first>.+?) (?P<relation>left of|right of|above|below) (?P<second>.+)$"
)


def caption(scene: Scene) -> str:
    """The prompt that states `scene`; `parse` is its inverse."""
    if scene.category == "count":
        number = next(word for word, count in COUNT_WORDS.items() if count == len(scene.things))
        thing = scene.things[0]
        words = [number, thing.size, thing.colour, _PLURALS[thing.shape]]
        text = " ".join(word for word in words if word)
    else:
        names = [_thing_text(thing) for thing in scene.things]
        if scene.relation is not None:
            text = f"{names[0]} {scene.relation} {names[1]}"
        else:
            text = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return text if scene.background is None else f"{text} on a {scene.background} background"


@functools.lru_cache(maxsize=65536)
def parse(prompt: str) -> Scene:
    """The scene that `prompt` states.

    Raises:
        ValueError: the prompt is not of the grammar; the message names the word at fault.
    """
    body, background = " ".join(prompt.lower().rstrip(" .").split()), None
    if match := _BACKGROUND.match(body):
        body, background = match["body"], match["colour"]
        if background not in BACKGROUNDS:
            raise _unknown("background", background, BACKGROUNDS, prompt)
    relation = None
    if match := _RELATION.match(body):
        relation = match["relation"]
        things = [_parse_thing(match["first"], prompt), _parse_thing(match["second"], prompt)]
    elif body.split(" ", 1)[0] in COUNT_WORDS:
        things = _parse_count(body, prompt)
    else:
        things = [_parse_thing(part, prompt) for part in re.split(r", and |, | and ", body)]
    if len(things) > 3 and len(set(things)) > 1:
        raise ValueError(
            f"at most three different things may be named, got {len(things)} in '{prompt}'"
        )
    return Scene(things=tuple(things), relation=relation, background=background)


def category(prompt: str) -> str:
    """The category of `prompt`: single, two, count, relation or three."""
    return parse(prompt).category


def split_of(prompt: str) -> str:
    """'train' or 'heldout', decided by a hash of the composition: every phrasing of one content
    falls on one side."""
    return _split_of_composition(parse(prompt).composition)


def prompts(
    split: str, category: str | None = None, limit: int | None = None, seed: int = 0
) -> list[str]:
    """Distinct prompts of a split in an order that `seed` fixes.

    With `category` None the categories take turns, so that any prefix is balanced; without a limit
    all prompts are given. The list for a smaller limit is a prefix of the list for a larger one.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}'; allowed: {', '.join(SPLITS)}")
    if category is not None and category not in CATEGORIES:
        raise ValueError(f"unknown category '{category}'; allowed: {', '.join(CATEGORIES)}")
    columns = [
        _shuffled(split, name, seed) for name in (CATEGORIES if category is None else (category,))
    ]
    mixed = (
        prompt for row in itertools.zip_longest(*columns) for prompt in row if prompt is not None
    )
    return list(itertools.islice(mixed, limit))


def vocabulary() -> list[str]:
    """Every word and mark that a prompt can contain, sorted."""
    words = {*COLOURS, *SHAPES, *_SINGULAR, *SIZES, *BACKGROUNDS, *COUNT_WORDS, *_ARTICLES}
    return sorted(words | {"and", "on", "background", "left", "right", "of", "above", "below", ","})


@functools.lru_cache(maxsize=32)
def _shuffled(split: str, category: str, seed: int) -> tuple[str, ...]:
    rng = random.Random(f"{seed}/{category}")
    scenes = [
        scene
        for scene in _variants(category, rng)
        if _split_of_composition(scene.composition) == split
    ]
    rng.shuffle(scenes)
    return tuple(caption(scene) for scene in scenes)


def _variants(category: str, rng: random.Random) -> Iterator[Scene]:
    """Each composition in each order; short lists in all sizes and backgrounds, long ones with a
    drawn variant."""
    pairs = [Thing(colour=colour, shape=shape) for colour in COLOURS for shape in SHAPES]
    grounds: tuple[str | None, ...] = (None, *BACKGROUNDS)
    if category == "single":
        for thing, size, ground in itertools.product(pairs, (None, *SIZES), grounds):
            yield Scene(things=(_sized(thing, size),), background=ground)
        return
    if category == "count":
        for thing, count, ground in itertools.product(pairs, COUNT_WORDS.values(), grounds):
            yield Scene(things=(_sized(thing, _maybe_size(rng, 0.2)),) * count, background=ground)
        return
    relations: tuple[str | None, ...] = RELATIONS if category == "relation" else (None,)
    if (
        category == "three"
    ):  # plain, so that the sentence fits the 16 tokens of the built-in text encoder
        yield from (Scene(things=things) for things in itertools.permutations(pairs, 3))
        return
    for things in itertools.permutations(pairs, 2):
        for relation in relations:
            sized = tuple(_sized(thing, _maybe_size(rng, 0.06)) for thing in things)
            ground = rng.choice(tuple(BACKGROUNDS)) if rng.random() < 0.25 else None
            yield Scene(things=sized, relation=relation, background=ground)


def _sized(thing: Thing, size: str | None) -> Thing:
    return Thing(colour=thing.colour, shape=thing.shape, size=size)


def _maybe_size(rng: random.Random, probability: float) -> str | None:
    return rng.choice(SIZES) if rng.random() < probability else None


@functools.lru_cache(maxsize=65536)
def _split_of_composition(composition: str) -> str:
    digest = hashlib.sha256(f"{SALT}|{composition}".encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") < HELDOUT_FRACTION * 2**64 else "train"


def _thing_text(thing: Thing) -> str:
    words = [word for word in (thing.size, thing.colour, thing.shape) if word]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _parse_thing(text: str, prompt: str) -> Thing:
    words = text.split()
    if not words or words[0] not in _ARTICLES:
        raise _unknown("article", words[0] if words else "", _ARTICLES, prompt)
    thing = _parse_words(words[1:], SHAPES, prompt)
    if _thing_text(thing).split()[0] != words[0]:
        raise ValueError(
            f"'{words[0]}' before '{words[1]}' in '{prompt}': write '{_thing_text(thing)}'"
        )
    return thing


def _parse_count(text: str, prompt: str) -> list[Thing]:
    number, *words = text.split()
    thing = _parse_words(words, tuple(_SINGULAR), prompt)
    single = Thing(colour=thing.colour, shape=_SINGULAR[thing.shape], size=thing.size)
    return [single] * COUNT_WORDS[number]


def _parse_words(words: list[str], shapes: tuple[str, ...], prompt: str) -> Thing:
    """[SIZE] COLOUR SHAPE; `shapes` are the singular or the plural names."""
    rest = list(words)
    size = rest.pop(0) if rest and rest[0] in SIZES else None
    for what, allowed in (("colour", tuple(COLOURS)), ("shape", shapes)):
        word = rest[0] if rest else ""
        if word not in allowed:
            raise _unknown(what, word, allowed, prompt)
        if what == "colour":
            rest.pop(0)
    if len(rest) > 1:
        raise ValueError(f"unexpected word '{rest[1]}' in '{prompt}'")
    return Thing(colour=words[-2], shape=words[-1], size=size)


def _unknown(what: str, word: str, allowed: Iterable[str], prompt: str) -> ValueError:
    names = ", ".join(allowed)
    return ValueError(f"unknown {what} '{word}' in '{prompt}'; allowed: {names}")
