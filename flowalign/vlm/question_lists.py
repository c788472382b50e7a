"""Yes/no questions for each prompt, in levels: a file of decompositions, or the built-in world's.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowalign.errors import DataError
from flowalign.text_rows import (
    each_row,
    kind,
    required,
    text_of,
)
from flowalign.worlds.shapes import grammar
from flowalign.worlds.shapes.questions import NUMBERS
from flowalign.worlds.shapes.scene import Scene, Thing

LEVELS = ("global", "subject", "relation")
EXAMPLE = (
    'write {"prompt": "...", "global": ["..."], "subject": ["..."], "relation": '
    '[{"question": "...", "answer": "no"}]}'
)


@dataclass(frozen=True, kw_only=True, slots=True)
class YesNoQuestion:
    """One question; `wanted` is the right answer."""

    text: str
    level: str  # of LEVELS
    wanted: bool = True


def read_questions(path: Path) -> dict[str, tuple[YesNoQuestion, ...]]:
    """The questions of each prompt of a `.jsonl` file.

    DataError (exit 3) lists up to 20 bad lines with their number; SecurityError (exit 8) for a
    file that can only be a pickle.
    """
    where = f"reward `questions`: {path}"
    found: dict[str, tuple[YesNoQuestion, ...]] = {}

    def take(row: Mapping[str, Any], place: str) -> None:
        prompt = text_of(required(row, "prompt", place), "prompt", place)
        if prompt in found:
            what = f"the prompt '{prompt[:60]}' again"
            raise DataError("DATA-DUPLICATE", place, what, "write it once")
        found[prompt] = _questions(row, place)

    each_row(path, where, take, row="a prompt a line", noun="questions", example=EXAMPLE)
    if not found:
        raise DataError("DATA-EMPTY", where, "holds no questions", EXAMPLE)
    return found


def shapes_questions(prompt: str) -> tuple[YesNoQuestion, ...]:
    """What a prompt of the built-in world says, but for sizes; ValueError for another prompt."""
    scene = grammar.parse(prompt)
    found = [_of("global", f"Are there exactly {NUMBERS[len(scene.things) - 1]}?")]
    if scene.background is not None:
        found.append(_of("global", f"Is the background {scene.background}?"))
    names = [(thing.colour, thing.shape) for thing in scene.things]
    for colour, shape in dict.fromkeys(names):
        one = grammar.caption(Scene(things=(Thing(colour=colour, shape=shape),)))
        found.append(_of("subject", f"Is there {one}?"))
    if scene.relation is not None:
        first, second = (" ".join(name) for name in names)
        found.append(_of("relation", f"Is the {first} {scene.relation} the {second}?"))
    return tuple(found)


def _of(level: str, text: str) -> YesNoQuestion:
    return YesNoQuestion(text=text, level=level)


def _questions(row: Mapping[str, Any], where: str) -> tuple[YesNoQuestion, ...]:
    if unknown := sorted(set(row) - {"prompt", *LEVELS}):
        what = f"unknown key `{unknown[0]}`"
        raise DataError("DATA-KEY", where, what, f"allowed: prompt, {', '.join(LEVELS)}")
    found = []
    for level in LEVELS:
        listed = row.get(level, [])
        if not isinstance(listed, list):
            raise DataError("DATA-TYPE", where, f"`{level}`: expected a list", EXAMPLE)
        found.extend(_question(entry, level, where) for entry in listed)
    if not found:
        raise DataError("DATA-EMPTY", where, "no question", EXAMPLE)
    return tuple(found)


def _question(entry: object, level: str, where: str) -> YesNoQuestion:
    if isinstance(entry, str):
        entry = {"question": entry}
    if not isinstance(entry, dict) or not set(entry) <= {"question", "answer"}:
        what = f"`{level}`: expected a question, got {kind(entry)}"
        raise DataError("DATA-TYPE", where, what, EXAMPLE)
    text = text_of(required(entry, "question", where), "question", where)
    answer = entry.get("answer", "yes")
    if answer not in ("yes", "no") or not text.strip():
        what = f"`{level}`: a question needs words and the answer yes or no"
        raise DataError("DATA-TYPE", where, what, EXAMPLE)
    return YesNoQuestion(text=text, level=level, wanted=answer == "yes")
