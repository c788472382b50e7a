"""Reference pictures by prompt, and worked examples of comparisons, from files of JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flowalign.errors import DataError, FlowalignError, first_of
from flowalign.media import load_image
from flowalign.randomness import generator
from flowalign.safe_path import inside
from flowalign.text_rows import (
    check_readable,
    decoded,
    json_object,
    numbered_lines,
    required,
    text_of,
)
from flowalign.vlm.asking import Picture, picture
from flowalign.worlds.shapes import grammar
from flowalign.worlds.shapes.render import pictures

MANIFEST = "manifest.jsonl"
SHAPES = "shapes"
REFERENCE = 'write {"prompt": "...", "image": "a.png"}'
EXAMPLE = 'write {"prompt": "...", "candidate": "a.png", "reference": "b.png", "answer": "yes"}'
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A comparison with its answer."""

    prompt: str
    candidate: Picture
    reference: Picture
    answer: str  # what the model should have said, reasoning first


def references_by_prompt(source: str, most: int) -> Callable[[str], Sequence[Picture]]:
    """The first `most` references of a prompt; DataError (exit 3) for a prompt without any."""
    if source == SHAPES:
        return lambda prompt: _drawn(prompt, most)
    path = Path(source)
    file = path / MANIFEST if path.is_dir() else path
    table: dict[str, list[Picture]] = {}
    for prompt, shown in _rows(file, REFERENCE, _reference):
        own = table.setdefault(prompt, [])
        if len(own) < most:
            own.append(shown())

    def references(prompt: str) -> Sequence[Picture]:
        if prompt not in table:
            what = f"no reference picture for the prompt '{prompt[:80]}'"
            fix = 'add a line {"prompt": ..., "image": ...} for it'
            raise DataError("DATA-KEY", str(file), what, fix)
        return table[prompt]

    return references


def read_examples(source: str) -> list[Example]:
    """The examples of a file, in order."""
    return _rows(Path(source), EXAMPLE, _example)


def _drawn(prompt: str, most: int) -> Sequence[Picture]:
    """True pictures of a prompt of the built-in world, the same each time."""
    try:
        scene = grammar.parse(prompt)
    except ValueError as error:
        fix = "name a file of references"
        raise DataError("DATA-KEY", "reward `rewarddance`: shapes", str(error), fix) from error
    drawn = pictures([scene] * most, generator(0, f"references {prompt}"))
    return [picture(one) for one in drawn]


def _reference(row: Mapping[str, Any], root: Path, where: str) -> tuple[str, Callable[[], Picture]]:
    prompt = text_of(required(row, "prompt", where), "prompt", where)
    path = _file(row, "image", root, where)
    return prompt, lambda: picture(load_image(path, where=where))


def _example(row: Mapping[str, Any], root: Path, where: str) -> Example:
    answer = text_of(required(row, "answer", where), "answer", where)
    if answer not in ("yes", "no"):
        raise DataError("DATA-TYPE", where, f"`answer`: {answer[:40]!r}", "write yes or no")
    reasoning = text_of(row.get("reasoning", ""), "reasoning", where)
    return Example(
        prompt=text_of(required(row, "prompt", where), "prompt", where),
        candidate=picture(load_image(_file(row, "candidate", root, where), where=where)),
        reference=picture(load_image(_file(row, "reference", root, where), where=where)),
        answer=f"{answer}. {reasoning}" if reasoning else answer,
    )


def _file(row: Mapping[str, Any], name: str, root: Path, where: str) -> Path:
    return inside(root, text_of(required(row, name, where), name, where), where)


def _rows(file: Path, example: str, read: Callable[[Mapping[str, Any], Path, str], T]) -> list[T]:
    """What `read` makes of each line; DataError (exit 3) lists up to 20 bad ones."""
    check_readable(
        file, f"reward `rewarddance`: {file}", {".jsonl": "a picture a line"}, "pictures"
    )
    found: list[T] = []
    faults: list[FlowalignError] = []
    for number, raw in numbered_lines(file):
        where = f"{file}:{number}"
        try:
            if (text := decoded(raw, where)).strip():
                found.append(read(json_object(text, where, example), file.parent, where))
        except FlowalignError as fault:
            faults.append(fault)
    if faults:
        raise first_of(faults)
    if not found:
        raise DataError("DATA-EMPTY", str(file), "holds no rows", example)
    return found
