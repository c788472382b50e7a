"""Prompts from a file or from a built-in world, checked before anything is trained. Torch-free.

A prompt is the exact characters of its line: nothing is stripped, folded or normalised, so two
prompts are one only when they are equal byte for byte.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowalign.config.schema import PromptsConfig
from flowalign.config.suggest import nearest
from flowalign.errors import DataError, FlowalignError, SecurityError, first_of, warn
from flowalign.worlds.shapes import grammar
from flowalign.worlds.shapes.scene import CATEGORIES

MAX_LINE_BYTES = 1_000_000
MAX_FILE_BYTES = 1_000_000_000
WORLD = "shapes:"
_PICKLED = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib"})
_BINARY_STARTS = (*(bytes([0x80, version]) for version in range(2, 6)), b"PK\x03\x04", b"\x93NUMPY")
_LAYOUT = frozenset("\t\n\r")  # control characters that a prompt of several lines may have
_KINDS = {bool: "true/false", int: "a number", float: "a number", str: "text"}
_MAX_SHOWN = 60
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt and its place among all prompts of its source."""

    text: str
    category: str | None
    prompt_id: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    text: str
    category: str | None
    line: int  # 1-based


def read_prompts(spec: str | Sequence[str], *, config: PromptsConfig, origin: str) -> list[Prompt]:
    """Every prompt of `shapes:train`, `shapes:heldout`, a `.txt` or `.jsonl` file, or a list.

    `origin` names the key or option that gave `spec`. Duplicates are kept, dropped or refused as
    `config.duplicates` says.

    Raises DataError (exit 3) with up to 20 bad rows and their number, SecurityError (exit 8) for
    a file that can only be a pickle.
    """
    if isinstance(spec, str) and spec.startswith(WORLD):
        return _world_prompts(spec.removeprefix(WORLD), config.categories, f"{origin}: {spec}")
    if isinstance(spec, str):
        path = Path(spec)
        rows, blank = _rows(path, origin, config)
    else:
        path = Path(origin)
        rows, blank = _listed(spec, path, config)
    if config.categories:
        rows = [row for row in rows if row.category in config.categories]
    if not rows:
        blanks = f" ({blank} blank lines)" if blank else ""
        what = f"0 prompts in file{blanks}" + (" of these categories" if config.categories else "")
        raise DataError("DATA-EMPTY", f"{origin}: {path}", what, "write one prompt a line")
    rows = _without_duplicates(rows, path, config)
    return [
        Prompt(text=row.text, category=row.category, prompt_id=place)
        for place, row in enumerate(rows)
    ]


def warn_overlap(train: Sequence[Prompt], evaluation: Sequence[Prompt], *, strict: bool) -> None:
    """Tell that prompts are both trained and evaluated on; an error when `strict`."""
    shared = {prompt.text for prompt in train} & {prompt.text for prompt in evaluation}
    if not shared:
        return
    example = next(prompt.text for prompt in evaluation if prompt.text in shared)
    what = f"{len(shared)} prompts are in prompts.train as well, for example {_shown(example)}"
    fix = "evaluate on prompts of their own"
    if strict:
        raise DataError("DATA-SPLIT", "prompts.evaluation", what, fix)
    warn("prompts.evaluation", what, fix)


def report_lengths(
    prompts: Sequence[str], lengths: Sequence[int], limit: int, *, strict: bool, encoder: str
) -> None:
    """Tell which prompts the text encoder cuts; an error when `strict`.

    `lengths` are the tokens of each prompt with special tokens, `limit` the most it can take.
    """
    cut = [
        (length - limit, place, text)
        for place, (text, length) in enumerate(zip(prompts, lengths, strict=True))
        if length > limit
    ]
    if not cut:
        return
    lost, place, text = max(cut)
    what = (
        f"the {limit}-token {encoder} cuts {len(cut)} of {len(prompts)} prompts; prompt {place} "
        f"{_shown(text)} loses {lost} tokens"
    )
    if strict:
        raise DataError("DATA-LENGTH", "prompts", what, "shorten them")
    warn("prompts", what, "shorten them, or take a model with a longer encoder")


def _world_prompts(split: str, categories: Sequence[str], where: str) -> list[Prompt]:
    if split not in grammar.SPLITS:
        what = f"the shapes world has no split '{split}'"
        raise DataError("DATA-SPLIT", where, what, f"allowed: {', '.join(grammar.SPLITS)}")
    columns = [
        [(text, category) for text in grammar.prompts(split, category)]
        for category in CATEGORIES
        if not categories or category in categories
    ]
    # Categories take turns, so that any prefix is balanced as far as it can be.
    mixed = (pair for turn in itertools.zip_longest(*columns) for pair in turn if pair is not None)
    return [
        Prompt(text=text, category=category, prompt_id=place)
        for place, (text, category) in enumerate(mixed)
    ]


def _rows(path: Path, origin: str, config: PromptsConfig) -> tuple[list[_Row], int]:
    """All rows and the number of blank lines; one error that lists every bad row otherwise."""
    rows: list[_Row] = []
    faults: list[FlowalignError] = []
    columns: dict[str, tuple[str, int]] = {}
    blank = 0
    for number, raw in _lines(path, origin):
        try:
            text = _decoded(raw, path, number)
            if not text:
                blank += 1
                continue
            if path.suffix == ".jsonl":
                row = _json_row(text, f"{path}:{number}", number, columns)
            else:
                row = _Row(text=text, category=None, line=number)
            _check_text(row, path, config)
            rows.append(row)
        except DataError as fault:
            faults.append(fault)
    if faults:
        raise first_of(faults)
    return rows, blank


def _listed(texts: Sequence[str], origin: Path, config: PromptsConfig) -> tuple[list[_Row], int]:
    """Rows of prompts that stand in the config itself, checked as those of a file."""
    rows = [_Row(text=text, category=None, line=i) for i, text in enumerate(texts, 1) if text]
    for row in rows:
        _check_text(row, origin, config)
    return rows, len(texts) - len(rows)


def _lines(path: Path, origin: str) -> Iterator[tuple[int, bytes]]:
    """(1-based number, bytes without the line's end), after refusing what is no text file."""
    where = f"{origin}: {path}"
    if path.suffix.lower() in _PICKLED:
        raise _pickle(where)
    if path.is_dir():
        raise DataError("DATA-FILE", where, "is a directory, expected a file", "name the file")
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
    except (OSError, ValueError) as error:
        raise _unreadable(path, where, error) from None
    if start.startswith(_BINARY_STARTS):
        raise _pickle(where)
    if path.suffix not in (".txt", ".jsonl"):
        what = f"unknown kind of file `{path.suffix or path.name}`"
        raise DataError("DATA-FILE", where, what, "use .txt (a prompt a line) or .jsonl")
    if size > MAX_FILE_BYTES:
        raise DataError("DATA-FILE", where, f"{size} bytes", f"at most {MAX_FILE_BYTES}")
    return _numbered_lines(path)


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            yield number, line.removesuffix(b"\n").removesuffix(b"\r")


def _pickle(where: str) -> SecurityError:
    what = "a pickle or an archive, which can run code when it is read"
    return SecurityError("SEC-PICKLE", where, what, "export the prompts as .txt or .jsonl")


def _unreadable(path: Path, where: str, error: Exception) -> DataError:
    if not isinstance(error, FileNotFoundError):
        return DataError("DATA-FILE", where, f"cannot be read: {error}", "check the path")
    parent = path.parent
    names = [str(parent / found.name) for found in parent.iterdir()] if parent.is_dir() else []
    near = nearest(str(path), names)
    fix = f"did you mean {near}?" if near else "correct the path"
    return DataError("DATA-FILE", where, f"not found (in {Path.cwd()})", fix)


def _decoded(raw: bytes, path: Path, number: int) -> str:
    if len(raw) > MAX_LINE_BYTES:
        what = f"a line of {len(raw)} bytes"
        raise DataError("DATA-LINE", f"{path}:{number}", what, f"at most {MAX_LINE_BYTES}")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        what = f"invalid UTF-8: byte 0x{raw[error.start]:02X}"
        where = f"{path}:{number}:{error.start + 1}"
        raise DataError("DATA-ENCODING", where, what, "save the file as UTF-8") from None


def _json_row(text: str, where: str, number: int, columns: dict[str, tuple[str, int]]) -> _Row:
    """A row of JSON lines; `columns` remembers the kind and the first line of every other field."""
    row = _json_object(text, where)
    if "prompt" not in row:
        near = nearest("prompt", row)
        fix = f"did you mean `prompt` for `{near}`?" if near else f"it has: {', '.join(row)}"
        raise DataError("DATA-KEY", where, "missing `prompt`", fix)
    for name in ("prompt", "category"):
        value = row.get(name, "")
        if not isinstance(value, str) and not (name == "category" and value is None):
            what = f"`{name}`: expected string, got {_kind(value)} {_shown(json.dumps(value))}"
            raise DataError("DATA-TYPE", where, what, "put it in quotes")
    for name, value in row.items():
        _check_column(name, value, where, number, columns)
    return _Row(text=row["prompt"], category=row.get("category"), line=number)


def _json_object(text: str, where: str) -> Mapping[str, Any]:
    fix = 'write {"prompt": "..."}'
    try:
        row = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg}, in {_shown(text)}"
        raise DataError("DATA-JSON", f"{where}:{error.colno}", what, fix) from None
    except (ValueError, RecursionError) as error:
        raise DataError("DATA-JSON", where, f"not usable: {error}", fix) from None
    if not isinstance(row, dict):
        raise DataError("DATA-JSON", where, f"expected an object, got {_kind(row)}", fix)
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        name = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise ValueError(f"`{name}` stands twice")
    return result


def _check_column(
    name: str, value: object, where: str, number: int, columns: dict[str, tuple[str, int]]
) -> None:
    """Numbers must be finite, and a column holds one kind of value (or null)."""
    for leaf in _leaves(value):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            raise DataError("DATA-FINITE", where, f"`{name}` must be finite, got {leaf}", "fix it")
    if value is None:
        return
    kind, first = columns.setdefault(name, (_kind(value), number))
    if kind != _kind(value):
        what = f"`{name}` is {_kind(value)} here and {kind} on line {first}"
        raise DataError("DATA-TYPE", where, what, "give the column one type")


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _kind(value: object) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return "null" if value is None else _KINDS[type(value)]


def _check_text(row: _Row, path: Path, config: PromptsConfig) -> None:
    where = f"{path}:{row.line}"
    for character in row.text:
        kind = unicodedata.category(character)
        if kind == "Cs" or (kind == "Cc" and character not in _LAYOUT):
            noun = "half of a surrogate pair" if kind == "Cs" else "control character"
            what = f"{noun} U+{ord(character):04X} in {_shown(row.text)}"
            raise DataError("DATA-CONTROL", where, what, "remove it")
    if not row.text.strip() and not config.allow_empty_prompt:
        what = f"line {row.line} is only white space"
        fix = "write a prompt; an empty one needs `prompts.allow_empty_prompt: true`"
        raise DataError("DATA-BLANK", where, what, fix)


def _without_duplicates(rows: list[_Row], path: Path, config: PromptsConfig) -> list[_Row]:
    _note_normal_forms(rows, path)
    first: dict[str, int] = {}
    repeated = [row for row in rows if first.setdefault(row.text, row.line) != row.line]
    if not repeated:
        return rows
    if config.duplicates == "fail":
        raise first_of([_duplicate(row, first[row.text], path) for row in repeated])
    example = (
        f"{_shown(repeated[0].text)} on lines {first[repeated[0].text]} and {repeated[0].line}"
    )
    what = f"{len(repeated)} duplicate prompts, for example {example}"
    if config.duplicates == "keep":
        warn(str(path), what, "set prompts.duplicates to dedupe or fail")
        return rows
    _logger.info("%s: %s; dropped", path, what)
    return [row for row in rows if first[row.text] == row.line]


def _duplicate(row: _Row, first: int, path: Path) -> DataError:
    what = f"duplicate of line {first}: {_shown(row.text)}"
    return DataError("DATA-DUPLICATE", f"{path}:{row.line}", what, "remove it")


def _note_normal_forms(rows: Sequence[_Row], path: Path) -> None:
    """Prompts that look alike and differ in bytes stay apart; say so."""
    forms: dict[str, str] = {}
    for row in rows:
        other = forms.setdefault(unicodedata.normalize("NFC", row.text), row.text)
        if other != row.text:
            what = "differs from another prompt only in its Unicode form (NFC or NFD); kept apart"
            _logger.info("%s:%s: %s", path, row.line, what)


def _shown(text: str) -> str:
    return f"'{text}'" if len(text) <= _MAX_SHOWN else f"'{text[:_MAX_SHOWN]}...'"
