"""The reference of all keys as Markdown, and the JSON schema for editors; both from the models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from flowalign.config.jobs import Job
from flowalign.config.sampling import Section
from flowalign.config.tree import DISCRIMINATORS, Key, expected, keys, sections_of

SCHEMA_ADDRESS = "https://json-schema.org/draft/2020-12/schema"


def json_schema(job: Job[Any]) -> dict[str, Any]:
    """The schema of a config file, short forms included; editors complete and check with it."""
    schema = job.root.model_json_schema()
    properties = schema["properties"]
    for name in job.short_forms:
        properties[name] = _or_text(properties[name])
    if "prompts" in job.short_forms:
        properties["prompts"]["anyOf"].append({"type": "array", "items": {"type": "string"}})
    for name in {"rewards", "held_out_rewards"} & set(properties):
        properties[name]["items"] = _or_text(properties[name]["items"])
        properties[name] = _or_text(properties[name])
    if "CompareConfig" in schema["$defs"]:
        methods = schema["$defs"]["CompareConfig"]["properties"]["methods"]
        methods["items"] = _or_text(methods["items"])
        compared = schema["$defs"]["ComparedConfig"]["properties"]
        compared["method"] = _or_text(compared["method"])
    sampler = schema["$defs"]["SamplerConfig"]["properties"]
    sampler["noise"] = _or_text(sampler["noise"])
    return {"$schema": SCHEMA_ADDRESS, **schema}


def _or_text(schema: dict[str, Any]) -> dict[str, Any]:
    outer = {key: schema.pop(key) for key in ("description", "default") if key in schema}
    return {**outer, "anyOf": [schema, {"type": "string"}]}


def markdown(job: Job[Any]) -> str:
    """Every key with its default, what it accepts and what it means, one section a table."""
    sections = list(_sections(job))
    title = f"# Config reference: `flowalign {job.command}`"
    lines = [title, "", (job.root.__doc__ or "").strip(), ""]
    lines += ["One YAML 1.2 file is one whole run: nothing is inherited and nothing is computed."]
    lines += ["`--set a.b=c` changes one key; `${NAME}` takes an environment variable.", ""]
    for title, text, owned in sections:
        lines += [f"## {title}", "", text, ""]
        lines += ["| key | accepts | default | meaning |", "|---|---|---|---|"]
        lines += [_row(key) for key in owned]
        lines += [""]
    return "\n".join(lines)


def _sections(job: Job[Any]) -> Iterator[tuple[str, str, list[Key]]]:
    """(title, first paragraph, keys) of each section; one that stands in two places comes once."""
    seen: dict[type[Section], list[Key]] = {}
    titles: dict[type[Section], str] = {}
    places = set[tuple[str, ...]]()
    for key in keys(job.root):
        place = key.path[:-1]
        if key.owner not in seen:
            seen[key.owner], titles[key.owner] = [], _title(key)
            places.add((*place, key.owner.__name__))
        if (*place, key.owner.__name__) in places:
            seen[key.owner].append(key)
    for owner, owned in seen.items():
        own = {key.path: key for key in owned}
        yield titles[owner], (owner.__doc__ or "").strip(), list(own.values())


def _title(key: Key) -> str:
    if len(key.path) == 1:
        return "Top level"
    place = ".".join(key.path[:-1]).replace(".[]", "[]")
    return f"`{place}`" + (
        "" if key.variant is None else f" with `{key.variant[0]}: {key.variant[1]}`"
    )


def _row(key: Key) -> str:
    meaning = " ".join(meaning_of(key).split())
    cells = (f"`{key.path[-1]}`", expected(key.field), default_of(key.field), meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def meaning_of(key: Key) -> str:
    """What a key is for: its own words, or those of the one section it holds."""
    if key.field.description:
        return key.field.description
    sections = sections_of(key.field.annotation)
    if len(sections) == 1:
        return (sections[0].__doc__ or "").strip().splitlines()[0]
    return "Chooses this variant." if key.path[-1] in DISCRIMINATORS else ""


def default_of(field: FieldInfo) -> str:
    """The default as it would be written, `required`, or the section's own defaults."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if sections_of(field.annotation):
        name = next((getattr(value, name, None) for name in DISCRIMINATORS), None)
        return f"`{name}`" if name else "its own"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"
