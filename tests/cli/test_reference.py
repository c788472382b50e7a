"""The reference and the JSON schema come from the models, and what is shipped is current."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flowalign.cli.config_files import schema_text
from flowalign.config.load import shipped_configs
from flowalign.config.reference import json_schema, markdown, meaning_of
from flowalign.config.tree import keys
from flowalign.config.yaml12 import parse
from tests.cli.commands import RUN, works
from tests.project import ROOT

SHIPPED = ROOT / "configs" / "schema.json"


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> list[str]:
    """What a JSON schema validator would say, for the words our schema uses."""
    if "$ref" in schema:
        return problems(value, root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            found = [problems(value, choice, root) for choice in schema[word]]
            return [] if [] in found else [problem for one in found for problem in one]
    types: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    kind = types[schema.get("type", "object" if "properties" in schema else "string")]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return [f"{value!r} is no {schema.get('type')}"]
    found = []
    if "const" in schema and value != schema["const"]:
        found.append(f"{value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{value!r} not in {schema['enum']}")
    if "exclusiveMinimum" in schema and value <= schema["exclusiveMinimum"]:
        found.append(f"{value} is too small")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{value} is too small")
    if isinstance(value, dict) and "properties" in schema:
        for name, item in value.items():
            if name not in schema["properties"]:
                found.append(f"unknown {name}")
            else:
                found += problems(item, schema["properties"][name], root)
        found += [f"{name} is missing" for name in schema.get("required", []) if name not in value]
    if isinstance(value, list) and "items" in schema:
        found += [p for item in value for p in problems(item, schema["items"], root)]
    return found


def test_shipped_schema_is_current() -> None:
    """Regenerate with `flowalign config schema -o configs/schema.json`."""
    assert SHIPPED.read_text(encoding="utf-8") == schema_text()


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_configs_fit_the_schema_and_name_it(name: str) -> None:
    """An editor that follows the first lines shows no red in what we ship."""
    text = shipped_configs()[name].read_text(encoding="utf-8")
    assert "# yaml-language-server: $schema=schema.json\n" in text.split("output:")[0]
    schema = json_schema()
    assert problems(parse(text, source=name).value, schema, schema) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed: 3", "sead: 3"),
        ("steps: 20", "steps: 0"),
        ("seed: 3", "seed: x"),
        ("name: grpo", "name: grppo"),
        ("schedule: cosine", "schedule: cosin"),
        ("output: unused", "seed2: 1"),
        ("save_every: 10", "save_every: often"),
    ],
)
def test_control_the_schema_sees_mistakes(old: str, new: str) -> None:
    schema = json_schema()
    assert problems(parse(RUN, source="f").value, schema, schema) == []
    assert problems(parse(RUN.replace(old, new), source="f").value, schema, schema)


def test_short_forms_fit_the_schema() -> None:
    schema = json_schema()
    data = {
        "output": "a",
        "model": "shapes",
        "rewards": ["clip", {"name": "jpeg"}],
        "held_out_rewards": "shapes",
        "algorithm": "nft",
        "sampler": {"noise": "linear"},
    }
    assert problems(data, schema, schema) == []


def test_every_key_is_documented() -> None:
    """With what it means; each stands in the reference."""
    text = markdown()
    for key in keys():
        assert len(meaning_of(key)) > 5, key.dotted
        assert f"| `{key.path[-1]}` |" in text
    assert "| `learning_rate` | number > 0 | `0.0003` |" in text


def test_reference_and_schema_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert works(capsys, ["config", "docs", "-o", "keys.md"]) == ""
    assert Path("keys.md").read_text(encoding="utf-8") == works(capsys, ["config", "docs"])
    assert json.loads(works(capsys, ["config", "schema"])) == json_schema()
