"""What a picture must show, as clauses: GenEval's metadata, one JSON object a line. Torch-free.

    {"prompt": "a photo of two clocks", "tag": "counting",
     "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}]}

An `include` clause asks for `count` objects (default 1) of a class, and may ask for a `color` of
them and for a `position`: `["left of", 0]` is left of what clause 0 asks for. An `exclude` clause
forbids `count` objects or more. Keys that are not used here are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowalign.errors import DataError
from flowalign.text_rows import (
    each_row,
    required,
    text_of,
)

RELATIONS = ("left of", "right of", "above", "below")
COUNTING = "counting"  # the tag whose objects must be more certain
EXAMPLE = 'write {"prompt": "...", "include": [{"class": "dog", "count": 1}]}'


@dataclass(frozen=True, kw_only=True, slots=True)
class Include:
    """So many objects, maybe of a colour, maybe somewhere."""

    label: str
    count: int = 1
    colour: str | None = None
    position: tuple[str, int] | None = None  # relation to the objects of an earlier clause


@dataclass(frozen=True, kw_only=True, slots=True)
class Exclude:
    """Not so many objects or more."""

    label: str
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """All that one prompt asks for."""

    include: tuple[Include, ...]
    exclude: tuple[Exclude, ...] = ()
    tag: str | None = None

    @property
    def labels(self) -> frozenset[str]:
        """Every class that it names."""
        return frozenset(clause.label for clause in (*self.include, *self.exclude))

    @property
    def colours(self) -> frozenset[str]:
        """Every colour that it names."""
        return frozenset(one.colour for one in self.include if one.colour is not None)


def read_checks(path: Path) -> dict[str, Check]:
    """The check of each prompt of a file.

    Raises DataError (exit 3) with every bad line, SecurityError (exit 8) for a pickle.
    """
    where = f"reward `geneval`, metadata `{path}`"
    checks: dict[str, Check] = {}

    def take(row: Mapping[str, Any], place: str) -> None:
        prompt = text_of(required(row, "prompt", place), "prompt", place)
        check = read_check(row, place)
        if checks.setdefault(prompt, check) != check:
            what = f"another check of the prompt {prompt!r}"
            raise DataError("DATA-DUPLICATE", place, what, "keep one of them")

    each_row(path, where, take, row="a prompt a line", noun="metadata", example=EXAMPLE)
    if not checks:
        raise DataError("DATA-EMPTY", where, "no prompt", EXAMPLE)
    return checks


def read_check(row: Mapping[str, Any], where: str) -> Check:
    """The check of one row."""
    include = tuple(
        _include(entry, place, f"{where}: include {place}")
        for place, entry in enumerate(_entries(row, "include", where))
    )
    exclude = tuple(
        Exclude(
            label=text_of(required(entry, "class", where), "class", where),
            count=_count(required(entry, "count", where), where),
        )
        for entry in _entries(row, "exclude", where)
    )
    if not include and not exclude:
        raise DataError("DATA-KEY", where, "neither `include` nor `exclude`", EXAMPLE)
    tag = row.get("tag")
    return Check(
        include=include, exclude=exclude, tag=None if tag is None else text_of(tag, "tag", where)
    )


def _entries(row: Mapping[str, Any], name: str, where: str) -> list[Mapping[str, Any]]:
    entries = row.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError("DATA-TYPE", where, f"`{name}`: expected a list of objects", EXAMPLE)
    return entries


def _include(entry: Mapping[str, Any], place: int, where: str) -> Include:
    colour, position = entry.get("color"), entry.get("position")
    return Include(
        label=text_of(required(entry, "class", where), "class", where),
        count=_count(entry.get("count", 1), where),
        colour=None if colour is None else text_of(colour, "color", where),
        position=None if position is None else _position(position, place, where),
    )


def _count(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError("DATA-TYPE", where, f"`count`: {value!r} is no whole number >= 1", EXAMPLE)
    return value


def _position(value: object, place: int, where: str) -> tuple[str, int]:
    fix = 'write ["left of", 0] for left of what the first clause asks for'
    if not isinstance(value, list) or len(value) != 2:
        raise DataError("DATA-TYPE", where, f"`position`: {value!r} is no pair", fix)
    relation, target = value
    if relation not in RELATIONS:
        what = f"unknown relation {relation!r}"
        raise DataError("DATA-CHOICE", where, what, f"allowed: {', '.join(RELATIONS)}")
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < place:
        what = f"`position` names clause {target!r}, and only earlier ones are known"
        raise DataError("DATA-TYPE", where, what, fix)
    return relation, target
