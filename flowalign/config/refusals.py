"""What a config may never do: carry secrets, name code on its own, read other files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowalign.config.problems import Problem, show
from flowalign.config.yaml12 import KeyPath
from flowalign.redaction import holds_a_secret, names_a_secret

_CODE_KEYS = frozenset({"custom_pipeline", "custom_revision", "trust_remote_code", "auto_map"})


def refusals(data: object, path: KeyPath = ()) -> Iterator[Problem]:
    """Secrets and code in raw `data`, whether or not the keys exist in the schema."""
    if isinstance(data, list | tuple):
        for index, item in enumerate(data):
            yield from refusals(item, (*path, index))
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _refused_key((*path, key), str(key), value)
            yield from refusals(value, (*path, key))
    elif isinstance(data, str) and holds_a_secret(data):
        what = "the value looks like a secret, and configs are written beside the results"
        yield _secret(path, what)


def _refused_key(path: KeyPath, key: str, value: Any) -> Iterator[Problem]:
    if key in _CODE_KEYS:
        what = f"`{key}` would run code that comes with a model"
        fix = (
            "use a model folder without code; your own code needs --allow-code on the command line"
        )
        yield Problem(path=path, code="SEC-CODE", what=what, fix=fix, refused=True)
    elif names_a_secret(key) and value not in (None, "", {}):
        yield _secret(path, f"a secret by value in `{key}`")


def _secret(path: KeyPath, what: str) -> Problem:
    fix = "name an environment variable instead, in a key that ends in `_env`"
    return Problem(path=path, code="CFG-SECRET", what=what, fix=fix)


def include_problem(value: object, *, folder: Path, own: Path) -> Problem:
    """The answer to `include: ...`: nothing is inherited, and no path leaves the folder."""
    path: KeyPath = ("include",)
    for name in value if isinstance(value, list) else [value]:
        target = (folder / str(name)).resolve()
        if not target.is_relative_to(folder.resolve()):
            what = f"path escape: {show(name)} leaves the config's folder"
            return Problem(path=path, code="SEC-PATH", what=what, fix="remove it", refused=True)
        if target == own.resolve():
            what = "include cycle: the config includes itself"
            return Problem(path=path, code="CFG-INCLUDE", what=what, fix="remove the line")
    what = "`include` does not exist: one file is one whole run"
    return Problem(path=path, code="CFG-INCLUDE", what=what, fix="copy the keys into this file")


def code_refusals(data: Mapping[str, Any], allow_code: Sequence[str]) -> Iterator[Problem]:
    """User code in raw `data` that the command line did not allow, by the exact file."""
    allowed = {Path(name).resolve() for name in allow_code}
    for section in ("rewards", "held_out_rewards"):
        entries = data.get(section)
        for index, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
            target = entry.get("target") if isinstance(entry, Mapping) else None
            if isinstance(target, str):
                yield from _refused_target((section, index, "target"), target, allowed)


def _refused_target(path: KeyPath, target: str, allowed: set[Path]) -> Iterator[Problem]:
    file, separator, name = target.rpartition(":")
    what, fix = "", ""
    if not separator or not file.endswith(".py") or not name.isidentifier() or "://" in target:
        what = f"{show(target)} is no local file: only `file.py:Name` can be code"
        fix = "write your code into a file and name it with --allow-code on the command line"
    elif Path(file).resolve() not in allowed:
        what = f"{show(target)} would run code that the command line did not allow"
        fix = f"add --allow-code {file} if you trust that file"
    if what:
        yield Problem(path=path, code="SEC-CODE", what=what, fix=fix, refused=True)
