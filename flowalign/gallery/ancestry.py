"""ancestry.json, checked: what a method noted becomes generations of particles. Torch-free.

Each method notes something else at its looks; here all become generations, in which a particle
knows its place, its reward, and the particle of the generation before from which it came.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flowalign.gallery.files import FileModel, Model, Number, checked, damaged, parsed, read_text
from flowalign.gallery.records import Family, Generation, Particle, PromptKey
from flowalign.safe_path import safe_join

MAX_BYTES = 100_000_000
FILE = "ancestry.json"
Place = Annotated[int, Field(ge=0)]
Rewards = Annotated[list[Number | None], Field(min_length=1)]


class Look(FileModel):
    """Feynman-Kac steering: who was copied."""

    step: Place
    reward: Rewards
    log_weight: list[Number | None]
    resampled: bool
    parents: list[Place]


class Halving(FileModel):
    """Best-of-N: who went on; all are places at the start."""

    step: Place
    particles: list[Place]
    reward: Rewards
    kept: list[Place]


class Choice(FileModel):
    """SVDD: which of the candidates went on."""

    step: Place
    reward: Rewards
    chosen: Place


class Round(FileModel):
    """Noise search: which tries are the best from now on."""

    round: Place
    reward: Rewards
    chosen: list[Place]


class Iteration(FileModel):
    """Noise optimisation: one noise, changed step by step; the best one is kept."""

    iteration: Place
    objective: Number | None
    reward: Annotated[list[Number | None], Field(min_length=1, max_length=1)]


class Population(FileModel):
    """What became of one prompt's particles."""

    prompt: str
    prompt_id: int
    repeat: Place = 0
    looks: list[dict[str, Any]]
    reward: Rewards
    log_weight: list[Number | None] | None = None
    returned: Annotated[list[Place], Field(min_length=1)]


class Ancestry(FileModel):
    """The whole file; what it is beside this stands in summary.json."""

    populations: list[Population]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """Turns one population's looks into generations; complains with file and place."""

    where: str

    def need(self, condition: bool, what: str) -> None:
        """DataError unless `condition`."""
        if not condition:
            raise damaged(self.where, what)


def read_families(
    folder: Path, prompt_ids: Mapping[str, Sequence[int]], notes: list[str]
) -> dict[PromptKey, tuple[Family, ...]]:
    """The families of an evaluation by prompt; empty where it has no history.

    `prompt_ids` are those of the scores. A method whose history has no picture here, and a file
    that is too large, become a note.

    Raises:
        DataError: the file is damaged, or speaks of other prompts than the scores.
    """
    path = safe_join(folder, FILE, what=str(folder))
    if not path.exists():
        return {}
    if path.stat().st_size > MAX_BYTES:
        notes.append(f"{FILE} is larger than {MAX_BYTES // 10**6} MB and not drawn")
        return {}
    found: dict[PromptKey, tuple[Family, ...]] = {}
    strange = 0
    for number, population in enumerate(parsed(Ancestry, read_text(path), str(path)).populations):
        where = f"{path}: populations.{number}"
        ids = prompt_ids.get(population.prompt, ())
        if population.prompt_id not in ids:
            raise damaged(where, "is of a prompt that has no scores")
        family = family_of(population, where)
        if family is None:
            strange += 1
            continue
        key = population.prompt, list(ids).index(population.prompt_id)
        found[key] = (*found.get(key, ()), family)
    if strange:
        notes.append(f"{strange} histories are of a kind that has no picture here")
    return found


def family_of(population: Population, where: str) -> Family | None:
    """The family of a population; None where its looks are of an unknown kind."""
    read = Reader(where=where)
    weights, ends = population.log_weight, len(population.reward)
    read.need(weights is None or len(weights) == ends, "log_weight is not one for each particle")
    read.need(all(place < ends for place in population.returned), "returned is no place")
    generations = generations_of(population, read)
    if generations is None:
        return None
    return Family(
        repeat=population.repeat,
        generations=tuple(generations),
        returned=frozenset(population.returned),
    )


def generations_of(population: Population, read: Reader) -> list[Generation] | None:
    """By the keys of the first look; without one all particles went to their end alone."""
    if not population.looks:
        count = len(population.reward)
        return [start(range(count)), end(population, [(0, k) for k in range(count)])]
    match population.looks[0]:
        case {"parents": _}:
            return of_looks(population, read)
        case {"kept": _}:
            return of_halvings(population, read)
        case {"chosen": int()}:
            return of_choices(population, read)
        case {"chosen": list()}:
            return of_rounds(population, read)
        case {"iteration": _}:
            return of_iterations(population, read)
    return None


def start(places: Sequence[int]) -> Generation:
    """Noise, not judged yet."""
    particles = tuple(Particle(place=place, parent=None, reward=None) for place in places)
    return Generation(title="start", note="", particles=particles)


def end(
    population: Population, parents: Sequence[tuple[int, int]], places: Sequence[int] | None = None
) -> Generation:
    """The finished particles with their true rewards; one for each parent, as the caller checks."""
    weights = population.log_weight or [None] * len(parents)
    rows = zip(places or range(len(parents)), parents, population.reward, weights, strict=True)
    particles = tuple(
        Particle(place=place, parent=parent, reward=reward, weight=share(weight))
        for place, parent, reward, weight in rows
    )
    return Generation(title="end", note="", particles=particles)


def share(log_weight: float | None) -> float | None:
    """A weight from its logarithm; those written are at most 0."""
    return None if log_weight is None else math.exp(min(0.0, log_weight))


def of_looks(population: Population, read: Reader) -> list[Generation]:
    """Feynman-Kac: a particle at a look came from the parent that the look before names."""
    looks = forms(Look, population, read)
    count = len(looks[0].reward)
    found, parents = [start(range(count))], list(range(count))
    for number, look in enumerate(looks):
        same = len(look.reward) == len(look.parents) == len(look.log_weight) == count
        read.need(same, f"looks.{number} is not of {count} particles")
        read.need(max(look.parents) < count, f"looks.{number}.parents names no particle")
        rows = enumerate(zip(parents, look.reward, look.log_weight, strict=True))
        particles = tuple(
            Particle(place=k, parent=(number, parent), reward=reward, weight=share(weight))
            for k, (parent, reward, weight) in rows
        )
        note = "resampled" if look.resampled else ""
        found.append(Generation(title=f"step {look.step}", note=note, particles=particles))
        parents = look.parents
    read.need(len(population.reward) == count, f"reward is not of {count} particles")
    return [*found, end(population, [(len(looks), parent) for parent in parents])]


def of_halvings(population: Population, read: Reader) -> list[Generation]:
    """Best-of-N: particles keep their places, and the worse half ends at a look."""
    halvings = forms(Halving, population, read)
    found = [start(halvings[0].particles)]
    here = halvings[0].particles
    read.need(here == list(range(len(here))), "looks.0.particles are not all places in order")
    for number, halving in enumerate(halvings):
        read.need(halving.particles == here, f"looks.{number}.particles are not those that went on")
        read.need(len(here) == len(halving.reward), f"looks.{number}.reward is of others")
        before = {p.place: k for k, p in enumerate(found[-1].particles)}
        particles = tuple(
            Particle(place=place, parent=(number, before[place]), reward=reward)
            for place, reward in zip(here, halving.reward, strict=True)
        )
        found.append(Generation(title=f"step {halving.step}", note="halved", particles=particles))
        here = halving.kept
        read.need(set(here) <= before.keys(), f"looks.{number}.kept names no particle")
        read.need(len(here) == len(set(here)) > 0, f"looks.{number}.kept names one twice, or none")
    read.need(len(population.reward) == len(here), f"reward is not of {len(here)} particles")
    before = {p.place: k for k, p in enumerate(found[-1].particles)}
    return [*found, end(population, [(len(halvings), before[place]) for place in here], here)]


def of_choices(population: Population, read: Reader) -> list[Generation]:
    """SVDD: all candidates of a step come from the one that was chosen before."""
    found, chosen = [start([0])], 0
    for number, choice in enumerate(forms(Choice, population, read)):
        read.need(choice.chosen < len(choice.reward), f"looks.{number}.chosen is no candidate")
        particles = tuple(
            Particle(place=k, parent=(number, chosen), reward=reward)
            for k, reward in enumerate(choice.reward)
        )
        found.append(Generation(title=f"step {choice.step}", note="", particles=particles))
        chosen = choice.chosen
    read.need(len(population.reward) == 1, "reward is not of one particle")
    return [*found, end(population, [(len(found) - 1, chosen)])]


def of_rounds(population: Population, read: Reader) -> list[Generation]:
    """Noise search: tries of survivors that shared a round, else the best so far in a chain."""
    found: list[Generation] = []
    best: tuple[int, int] | None = None
    before: list[int] = []
    for number, turn in enumerate(forms(Round, population, read)):
        count = len(turn.reward)
        read.need(all(k < count for k in turn.chosen), f"looks.{number}.chosen is no try")
        each = count // len(before) if len(before) > 1 and count % len(before) == 0 else 0
        parents: list[tuple[int, int] | None] = [None] * count
        for k in range(count) if each else turn.chosen:
            parents[k] = (number - 1, before[k // each]) if each else best
        rows = enumerate(zip(parents, turn.reward, strict=True))
        particles = tuple(
            Particle(place=k, parent=parent, reward=reward) for k, (parent, reward) in rows
        )
        found.append(Generation(title=f"round {turn.round}", note="", particles=particles))
        before = turn.chosen
        best = (number, turn.chosen[0]) if turn.chosen else best
    read.need(best is not None and len(population.reward) == 1, "no try was chosen")
    return [*found, end(population, [best] if best else [])]


def of_iterations(population: Population, read: Reader) -> list[Generation]:
    """Noise optimisation: a chain; the end is the iteration of the highest objective."""
    iterations = forms(Iteration, population, read)
    found = [
        Generation(
            title=f"{each.iteration}",
            note="",
            particles=(
                Particle(
                    place=0, parent=(number - 1, 0) if number else None, reward=each.reward[0]
                ),
            ),
        )
        for number, each in enumerate(iterations)
    ]
    read.need(len(population.reward) == 1, "reward is not of one particle")
    heights = [-math.inf if each.objective is None else each.objective for each in iterations]
    return [*found, end(population, [(heights.index(max(heights)), 0)])]


def forms(form: type[Model], population: Population, read: Reader) -> list[Model]:
    """All looks as this form."""
    places = enumerate(population.looks)
    return [checked(form, look, f"{read.where}.looks.{place}") for place, look in places]
