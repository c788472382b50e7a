"""`--set a.b=c`: one key of a config changed on the command line."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Sequence
from typing import Any

from flowalign.config.yaml12 import KeyPath, Value, dotted, parse, plain_scalar
from flowalign.errors import ConfigError

ORIGIN = "command line"


def parse_override(text: str) -> tuple[KeyPath, Value]:
    """`train.learning_rate=1e-5` as a path and a value with YAML's scalars.

    A value that starts with a bracket, a brace or a quote is YAML in one line; any other is one
    plain scalar, colons and all. Numbers between dots are indices of a list.
    """
    name, separator, value = text.partition("=")
    parts = name.strip().split(".")
    if not separator or not all(parts):
        what, fix = f"`{text}` is not key=value", "write --set train.learning_rate=1e-4"
        raise ConfigError("CLI-SET", f"{ORIGIN}: --set", f"needs key=value: {what}", fix)
    path = tuple(int(part) if part.isdecimal() else part for part in parts)
    return path, _value(value.strip(), dotted(path))


def _value(text: str, name: str) -> Value:
    if not text.startswith(("[", "{", '"', "'")):
        return plain_scalar(text)
    with contextlib.suppress(ValueError):
        if text.startswith('"'):
            return json.loads(text)  # a shell script quotes a path best as JSON
    return parse(f"value: {text}", source=f"{ORIGIN}: --set {name}").value["value"]


def apply_overrides(
    data: dict[str, Any], sets: Sequence[str]
) -> tuple[dict[str, Any], list[KeyPath]]:
    """`data` with every `--set` applied, and the paths that were set."""
    result = copy.deepcopy(data)
    paths: list[KeyPath] = []
    for text in sets:
        path, value = parse_override(text)
        if path in paths:
            where = f"{ORIGIN}: --set {dotted(path)}"
            raise ConfigError("CLI-TWICE", where, "given twice", "keep one of the two")
        _assign(result, path, value)
        paths.append(path)
    return result, paths


def _assign(data: dict[str, Any], path: KeyPath, value: Value) -> None:
    here: Any = data
    for depth, part in enumerate(path[:-1]):
        if isinstance(here, dict) and part not in here:
            here[part] = {}
        here = _step(here, part, path[: depth + 1])
    last = path[-1]
    _step(here, last, path, must_exist=False)
    here[last] = value


def _step(here: Any, part: str | int, path: KeyPath, *, must_exist: bool = True) -> Any:
    """The child `part` of `here`, after checking that it can have one."""
    where = f"{ORIGIN}: --set {dotted(path)}"
    if isinstance(here, list):
        if not isinstance(part, int):
            what = f"`{dotted(path[:-1])}` is a list of {len(here)}"
            raise ConfigError("CLI-SET", where, what, f"use an index: {dotted(path[:-1])}.0")
        if part >= len(here):
            what = f"index {part} outside the list of {len(here)}"
            raise ConfigError("CLI-SET", where, what, "indices start at 0")
        return here[part]
    if not isinstance(here, dict):
        what = f"`{dotted(path[:-1])}` is a single value and has no keys"
        raise ConfigError("CLI-SET", where, what, f"set {dotted(path[:-1])} itself")
    return here[part] if must_exist else None
