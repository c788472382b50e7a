"""What a picture of the shapes world may contain: things, their colours, sizes, relation and
background.

No torch here: the grammar and the command line list prompts without loading it.
"""

from dataclasses import dataclass

# 8-bit RGB. Chosen so that any two differ by at least 0.35 in [0, 1] RGB distance, and by 0.38 from
# each background.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (30, 165, 60),
    "blue": (35, 70, 225),
    "yellow": (245, 220, 30),
    "orange": (250, 130, 15),
    "purple": (135, 35, 185),
    "cyan": (30, 205, 225),
    "pink": (255, 125, 195),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (14, 14, 14),
    "white": (244, 244, 244),
    "gray": (128, 128, 128),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "cross")
SIZES: tuple[str, ...] = ("small", "large")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
CATEGORIES: tuple[str, ...] = ("single", "two", "count", "relation", "three")
MAX_THINGS = 4  # one per quadrant

# A relation and the one that says the same with the two things exchanged.
CONVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """One coloured shape. `size` None means that the prompt does not say, and any size is right."""

    colour: str
    shape: str
    size: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """The meaning of a prompt: 1 to 4 things, at most one relation (first thing to second), maybe
    a background."""

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.things) <= MAX_THINGS:
            raise ValueError(f"a scene holds 1 to {MAX_THINGS} things, got {len(self.things)}")
        if self.relation is not None and len(self.things) != 2:
            raise ValueError(
                f"the relation '{self.relation}' needs exactly two things, got {len(self.things)}"
            )
        _check("relation", self.relation, RELATIONS)
        _check("background", self.background, tuple(BACKGROUNDS))
        for thing in self.things:
            _check("colour", thing.colour, tuple(COLOURS))
            _check("shape", thing.shape, SHAPES)
            _check("size", thing.size, SIZES)

    @property
    def category(self) -> str:
        """One of CATEGORIES: equal things are a count, a stated relation comes before the number
        of things."""
        if len(self.things) == 1:
            return "single"
        if self.relation is not None:
            return "relation"
        if len(set(self.things)) == 1:
            return "count"
        if len(self.things) == 2:
            return "two"
        if len(self.things) == 3:
            return "three"
        raise ValueError(
            f"no category for {len(self.things)} different things; at most three may differ"
        )

    @property
    def composition(self) -> str:
        """Canonical text of the coloured shapes and their relation, equal for every phrasing of the
        same content.

        Order of listing, size words and background are left out, so that no variant of a held-out
        composition can be a training caption; "A right of B" is written as "B left of A".
        """
        names = [f"{thing.colour} {thing.shape}" for thing in self.things]
        if self.relation is None:
            return " + ".join(sorted(names))
        if self.relation in ("right of", "below"):
            return f"{names[1]} {CONVERSE[self.relation]} {names[0]}"
        return f"{names[0]} {self.relation} {names[1]}"


def _check(what: str, word: str | None, allowed: tuple[str, ...]) -> None:
    if word is not None and word not in allowed:
        raise ValueError(f"unknown {what} '{word}'; allowed: {', '.join(allowed)}")
