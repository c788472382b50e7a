"""A misspelt key never runs: every key of every shipped config, one edit at a time.

Edits: a letter lost, doubled, changed, or swapped with its neighbour; wrong case; hyphens and
camel case for underscores; the key one level too high, one too deep, or in another section.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flowalign.config import suggest
from flowalign.config.load import config_from_mapping, shipped_configs
from flowalign.config.tree import field_at, section_at
from flowalign.config.yaml12 import KeyPath, parse
from flowalign.errors import ConfigError
from tests.cli.commands import RUN

CONFIGS = {"the tests' own": RUN} | {
    name: path.read_text(encoding="utf-8") for name, path in shipped_configs().items()
}
SECTIONS = ("train", "rollout", "model")  # where a key is put by mistake


def paths(data: Any, whole: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key of the schema in `data`; keys of a pipeline's call are the pipeline's."""
    if isinstance(data, dict):
        for name, value in data.items():
            here = (*path, name)
            if field_at(here, whole) is not None:
                yield here
            yield from paths(value, whole, here)
    elif isinstance(data, list):
        for place, value in enumerate(data):
            yield from paths(value, whole, (*path, place))


def misspelt(name: str) -> Iterator[tuple[str, str]]:
    """(kind, name with one edit)."""
    middle = len(name) // 2
    yield "lost", name[:middle] + name[middle + 1 :]
    yield "doubled", name[:middle] + name[middle] + name[middle:]
    yield "changed", name[:middle] + ("q" if name[middle] != "q" else "z") + name[middle + 1 :]
    yield "swapped", name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    yield "upper case", name.upper()
    yield "capital", name.capitalize()
    if "_" in name:
        first, *rest = name.split("_")
        yield "hyphen", name.replace("_", "-")
        yield "camel case", first + "".join(word.capitalize() for word in rest)


def parent(data: Any, path: KeyPath) -> Any:
    for part in path[:-1]:
        data = data[part]
    return data


def renamed(data: Any, path: KeyPath, name: str) -> Any:
    """`data` with the key at `path` called `name`."""
    result = copy.deepcopy(data)
    section = parent(result, path)
    section[name] = section.pop(path[-1])
    return result


def moved(data: Any, path: KeyPath) -> Iterator[tuple[str, Any]]:
    """(kind, data with the key at another place)."""
    name = str(path[-1])
    for section in (None, *SECTIONS, "deeper"):
        result = copy.deepcopy(data)
        origin = parent(result, path)
        value = origin.pop(name)
        if section == "deeper":
            origin["options"] = {name: value}
            yield "one too deep", result
            continue
        place = () if section is None else (section,)
        target = result if section is None else result.setdefault(section, {})
        fits = section_at(place, result)
        if path[:-1] != place and isinstance(target, dict) and fits is not None:
            if name in fits.model_fields or (path[:1] == place and len(path) == 1):
                continue  # the place has a key of that name: nothing can be seen
            target[name] = value
            yield "moved to " + (section or "the top"), result


def edits(data: Any, path: KeyPath) -> Iterator[tuple[str, Any]]:
    """(kind, edited data)."""
    section = section_at(path[:-1], data)
    assert section is not None
    for kind, name in misspelt(str(path[-1])):
        if name and name not in section.model_fields:
            yield kind, renamed(data, path, name)
    yield from moved(data, path)


def generic(path: KeyPath) -> str:
    return ".".join("[]" if isinstance(part, int) else part for part in path).replace(".[]", "[]")


def right(told: str, path: KeyPath) -> bool:
    """Whether the message names the key that was meant."""
    return f"`{path[-1]}`" in told or f"`{generic(path)}`" in told


def outcomes(text: str) -> Iterator[tuple[str, KeyPath, str]]:
    """(kind, key, what was told) of each edit of one config; nothing told means that it ran."""
    whole = parse(text, source="config").value
    for path in paths(whole, whole):
        for kind, data in edits(whole, path):
            told = ""
            try:
                config_from_mapping(data)
            except ConfigError as error:
                told = "\n".join(error.lines())
            yield kind, path, told


@pytest.mark.parametrize("config", CONFIGS)
def test_no_typo_runs_and_the_suggestion_is_right(config: str) -> None:
    """100 % are errors, at least 90 % name the key that was meant, in milliseconds each."""
    start = time.perf_counter()
    results = [(*row, right(row[2], row[1])) for row in outcomes(CONFIGS[config])]
    seconds = time.perf_counter() - start
    assert len(results) > 150
    silent = [(kind, path) for kind, path, told, _ in results if not told]
    assert not silent
    wrong = [(kind, generic(path)) for kind, path, _, good in results if not good]
    assert len(wrong) <= 0.1 * len(results), sorted(set(wrong))
    assert seconds / len(results) < 0.1


def test_control_without_similarity_suggestions_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure is not vacuous: with the search for names removed it falls below 90 %."""
    monkeypatch.setattr(suggest, "similarity", lambda first, second: 0.0)
    results = [right(told, path) for _, path, told in outcomes(RUN)]
    assert sum(results) < 0.5 * len(results)
