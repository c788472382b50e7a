"""A family tree as geometry: the template only writes it down as SVG. Torch-free.

Time runs to the right, a place of the population is a line. A circle is a particle when it was
judged: its size and colour tell the reward. Whoever has no descendant at the end is faded; the
line of the returned ones is bold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowalign.gallery.compare import shown_range
from flowalign.gallery.records import Family, Generation, Particle
from flowalign.gallery.wording import listed, number, short

STEP, LINE = 68.0, 36.0  # from a generation to the next, from a place to the next; CSS pixels
LEFT, TOP, RIGHT, BOTTOM = 30.0, 48.0, 84.0, 28.0
SMALL, LARGE = 4.0, 9.0  # radius
FATES = ("lost", "lived", "kin")  # no end; an end; an end that was returned


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Words above a generation."""

    x: float
    title: str
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """One particle."""

    x: float
    y: float
    radius: float
    fate: str
    goodness: int | None  # 0 to 10; None without a reward
    text: str  # its reward
    returned: bool
    title: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """A drawing, `width` x `height` CSS pixels."""

    width: float
    height: float
    heads: tuple[Head, ...]
    links: tuple[tuple[str, str], ...]  # (fate, path), the faded ones first
    dots: tuple[Dot, ...]
    words: str  # the drawing in words


def is_history(family: Family) -> bool:
    """Whether anything happened: more than one particle, or one that was looked at."""
    most = max(len(generation.particles) for generation in family.generations)
    return most > 1 or len(family.generations) > 2


def reward_range(families: Sequence[Family]) -> tuple[float, float]:
    """The range of sizes and colours that drawings of one evaluation share."""
    particles = (p for f in families for g in f.generations for p in g.particles)
    return shown_range([p.reward for p in particles if p.reward is not None])


def tree(family: Family, low: float, high: float) -> Tree:
    """The drawing of one family, rewards from `low` to `high`."""
    fates = fates_of(family)
    generations = family.generations
    places = max(p.place for g in generations for p in g.particles)
    last = len(generations) - 1
    dots = tuple(
        _dot(family, (number, k), particle, fates[number][k], low, high)
        for number, generation in enumerate(generations)
        for k, particle in enumerate(generation.particles)
    )
    heads = (
        Head(x=x_at(k), title=generation.title, note=generation.note)
        for k, generation in enumerate(generations)
    )
    return Tree(
        width=x_at(last) + RIGHT,
        height=y_at(places) + BOTTOM,
        heads=tuple(heads),
        links=tuple((fate, path) for fate in FATES if (path := _links(generations, fates, fate))),
        dots=dots,
        words=words(family, fates),
    )


def fates_of(family: Family) -> list[list[str]]:
    """For each generation and particle, what became of its line."""
    generations = family.generations
    level = [[0] * len(generation.particles) for generation in generations]
    level[-1] = [2 if k in family.returned else 1 for k in range(len(level[-1]))]
    for step in range(len(generations) - 1, 0, -1):
        for particle, reached in zip(generations[step].particles, level[step], strict=True):
            if particle.parent is not None:
                before, place = particle.parent
                level[before][place] = max(level[before][place], reached)
    return [[FATES[reached] for reached in levels] for levels in level]


def x_at(generation: int) -> float:
    """Of a generation's circles."""
    return LEFT + STEP * generation


def y_at(place: int) -> float:
    """Of a place's circles."""
    return TOP + LINE * place


def _dot(
    family: Family, at: tuple[int, int], particle: Particle, fate: str, low: float, high: float
) -> Dot:
    generation, k = at
    returned = generation == len(family.generations) - 1 and k in family.returned
    height, reward = 0.0, particle.reward
    if reward is not None:
        height = min(1.0, max(0.0, (reward - low) / (high - low)))
    told = "not judged" if generation == 0 and reward is None else "no valid reward"
    title = f"particle {particle.place + 1}, {family.generations[generation].title}: "
    title += told if reward is None else f"reward {number(reward)}"
    if particle.weight is not None:
        title += f", weight {short(particle.weight)}"
    judged = reward is not None or generation > 0
    return Dot(
        x=x_at(generation),
        y=y_at(particle.place),
        radius=round(SMALL + (LARGE - SMALL) * height, 1),
        fate=fate,
        goodness=None if reward is None else round(10 * height),
        text=(short(reward) if reward is not None else "none") if judged else "",
        returned=returned,
        title=title + (", returned" if returned else ""),
    )


def _links(generations: Sequence[Generation], fates: Sequence[Sequence[str]], wanted: str) -> str:
    """A path through all links to particles of one fate."""
    links = [
        _link(generations, (step, k), particle.parent)
        for step, generation in enumerate(generations)
        for k, particle in enumerate(generation.particles)
        if particle.parent is not None and fates[step][k] == wanted
    ]
    return "".join(links)


def _link(generations: Sequence[Generation], to: tuple[int, int], parent: tuple[int, int]) -> str:
    """From a parent to the right: straight on its line, or bent half a step before the end."""
    (x0, y0), (x1, y1) = (
        (x_at(step), y_at(generations[step].particles[k].place)) for step, k in (parent, to)
    )
    if y0 == y1:
        return f"M{x0:g} {y0:g}H{x1:g}"
    bend = x1 - STEP / 2
    return f"M{x0:g} {y0:g}H{bend - 14:g}C{bend + 8:g} {y0:g} {bend:g} {y1:g} {x1:g} {y1:g}"


def words(family: Family, fates: Sequence[Sequence[str]]) -> str:
    """What a reader who does not see the drawing is told."""
    generations = family.generations
    first, last = generations[0].particles, generations[-1].particles
    most = max(len(generation.particles) for generation in generations)
    told = [f"{len(last)} of {most} at the end"]
    for note in dict.fromkeys(generation.note for generation in generations if generation.note):
        titles = [generation.title for generation in generations if generation.note == note]
        where = f"at {listed(titles)}" if len(titles) < 9 else f"{len(titles)} times"
        told.append(f"{note} {where}")
    if len(first) > 1 and len(last) > 1 and len(generations) > 2:
        ancestors = sum(fate != "lost" for fate in fates[0])
        told.append(f"all ends come from {ancestors} of {len(first)} starts")
    if len(family.returned) < len(last) or len(last) == 1:
        rewards = [last[k].reward for k in sorted(family.returned)]
        shown = ["none" if reward is None else number(reward) for reward in rewards[:8]]
        told.append(f"returned with reward {', '.join(shown)}")
    return "; ".join(told)
