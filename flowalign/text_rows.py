"""Text files row by row, as prompts and data have them: strict, and every fault has its line.

Torch-free. A row that cannot be used is a DataError (exit 3) at `file:line`; a file that can only
be a pickle is a SecurityError (exit 8).
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flowalign.config.suggest import nearest
from flowalign.errors import DataError, FlowalignError, SecurityError, first_of

MAX_LINE_BYTES = 1_000_000
MAX_FILE_BYTES = 1_000_000_000
_PICKLED = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib"})
_BINARY_STARTS = (*(bytes([0x80, version]) for version in range(2, 6)), b"PK\x03\x04", b"\x93NUMPY")
_LAYOUT = frozenset("\t\n\r")  # control characters that a text of several lines may have
_KINDS = {bool: "true/false", int: "a number", float: "a number", str: "text"}
_MAX_SHOWN = 60

Columns = dict[str, tuple[str, int]]  # name: (kind of value, first line that has it)


def check_readable(path: Path, where: str, kinds: Mapping[str, str], noun: str) -> None:
    """Refuse what is no file of one of `kinds`, {suffix: what it holds}; `noun` is what we want."""
    if path.suffix.lower() in _PICKLED:
        raise _pickle(where, noun, kinds)
    if path.is_dir():
        raise DataError("DATA-FILE", where, "is a directory, expected a file", "name the file")
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
    except (OSError, ValueError) as error:
        raise _unreadable(path, where, error) from None
    if start.startswith(_BINARY_STARTS):
        raise _pickle(where, noun, kinds)
    if path.suffix not in kinds:
        what = f"unknown kind of file `{path.suffix or path.name}`"
        raise DataError("DATA-FILE", where, what, f"use {_listed(kinds)}")
    if size > MAX_FILE_BYTES:
        raise DataError("DATA-FILE", where, f"{size} bytes", f"at most {MAX_FILE_BYTES}")


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(1-based number, bytes without the line's end) of a file, without its byte order mark."""
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def each_row(
    path: Path,
    where: str,
    take: Callable[[Mapping[str, Any], str], None],
    *,
    row: str,
    noun: str,
    example: str,
) -> None:
    """Hand every object of a `.jsonl` file, and its place, to `take`.

    `row` tells what a line is, `noun` what the file holds. Raises what `take` raised, up to 20 bad
    lines with their number in one error; SecurityError (exit 8) for a file that can only be a
    pickle.
    """
    check_readable(path, where, {".jsonl": row}, noun)
    faults: list[FlowalignError] = []
    for number, raw in numbered_lines(path):
        place = f"{path}:{number}"
        try:
            text = decoded(raw, place)
            if text.strip():
                take(json_object(text, place, example), place)
        except FlowalignError as fault:
            faults.append(fault)
    if faults:
        raise first_of(faults)


def decoded(raw: bytes, where: str) -> str:
    """The text of a line that is UTF-8 and not too long."""
    if len(raw) > MAX_LINE_BYTES:
        what = f"a line of {len(raw)} bytes"
        raise DataError("DATA-LINE", where, what, f"at most {MAX_LINE_BYTES}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"invalid UTF-8: byte 0x{raw[error.start]:02X}"
        place = f"{where}:{error.start + 1}"
        raise DataError("DATA-ENCODING", place, what, "save the file as UTF-8") from None


def json_object(text: str, where: str, fix: str) -> Mapping[str, Any]:
    """The object of a line of JSON, each key once."""
    try:
        row = json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg}, in {shown(text)}"
        raise DataError("DATA-JSON", f"{where}:{error.colno}", what, fix) from None
    except (ValueError, RecursionError) as error:
        raise DataError("DATA-JSON", where, f"not usable: {error}", fix) from None
    if not isinstance(row, dict):
        raise DataError("DATA-JSON", where, f"expected an object, got {kind(row)}", fix)
    return row


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; ValueError when a key stands twice."""
    result = dict(pairs)
    if len(result) < len(pairs):
        name = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"`{name}` stands twice")
    return result


def required(row: Mapping[str, Any], name: str, where: str) -> Any:
    """`row[name]`, or a DataError with the key that was probably meant."""
    if name not in row:
        near = nearest(name, row)
        fix = f"did you mean `{name}` for `{near}`?" if near else f"it has: {', '.join(row)}"
        raise DataError("DATA-KEY", where, f"missing `{name}`", fix)
    return row[name]


def text_of(value: object, name: str, where: str) -> str:
    """`value` if it is text."""
    if not isinstance(value, str):
        what = (
            f"`{name}`: expected string, got {kind(value)} {shown(json.dumps(value, default=str))}"
        )
        raise DataError("DATA-TYPE", where, what, "put it in quotes")
    return value


def check_column(name: str, value: object, where: str, number: int, columns: Columns) -> None:
    """Numbers must be finite, and a column holds one kind of value (or null)."""
    for leaf in _leaves(value):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise DataError("DATA-FINITE", where, f"`{name}` must be finite, got {leaf}", "fix it")
    if value is None:
        return
    known, first = columns.setdefault(name, (kind(value), number))
    if known != kind(value):
        what = f"`{name}` is {kind(value)} here and {known} on line {first}"
        raise DataError("DATA-TYPE", where, what, "give the column one type")


def check_characters(text: str, where: str) -> None:
    """Refuse control characters and halves of surrogate pairs."""
    for character in text:
        category = unicodedata.category(character)
        if category == "Cs" or (category == "Cc" and character not in _LAYOUT):
            noun = "half of a surrogate pair" if category == "Cs" else "control character"
            what = f"{noun} U+{ord(character):04X} in {shown(text)}"
            raise DataError("DATA-CONTROL", where, what, "remove it")


def kind(value: object) -> str:
    """What sort of JSON value this is, in words."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def shown(text: str) -> str:
    """A text in quotes, cut to 60 characters."""
    return f"'{text}'" if len(text) <= _MAX_SHOWN else f"'{text[:_MAX_SHOWN]}...'"


def _pickle(where: str, noun: str, kinds: Mapping[str, str]) -> SecurityError:
    what = "a pickle or an archive, which can run code when it is read"
    return SecurityError("SEC-PICKLE", where, what, f"export the {noun} as {' or '.join(kinds)}")


def _unreadable(path: Path, where: str, error: Exception) -> DataError:
    if not isinstance(error, FileNotFoundError):
        return DataError("DATA-FILE", where, f"cannot be read: {error}", "check the path")
    parent = path.parent
    names = [str(parent / found.name) for found in parent.iterdir()] if parent.is_dir() else []
    near = nearest(str(path), names)
    fix = f"did you mean {near}?" if near else "correct the path"
    return DataError("DATA-FILE", where, f"not found (in {Path.cwd()})", fix)


def _listed(kinds: Mapping[str, str]) -> str:
    words = [f"{suffix} ({holds})" if holds else suffix for suffix, holds in kinds.items()]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
