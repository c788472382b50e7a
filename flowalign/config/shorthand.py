"""Short forms of a config, written out: `algorithm: grpo` for `algorithm: {name: grpo}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMED = ("model", "algorithm", "sampler")  # a string is the section's `name`
_LISTS = ("rewards", "held_out_rewards")


def write_out(data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` with every short form replaced by the mapping it stands for; nothing else changes."""
    result = dict(data)
    for section in _NAMED:
        if isinstance(result.get(section), str):
            result[section] = {"name": result[section]}
    for name in _LISTS:
        if name in result:
            result[name] = _rewards(result[name])
    sampler = result.get("sampler")
    if isinstance(sampler, Mapping) and isinstance(sampler.get("noise"), str):
        result["sampler"] = {**sampler, "noise": {"schedule": sampler["noise"]}}
    return result


def write_out_steering(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a steering job: `method: fk`, also where methods are compared, and prompts."""
    result = write_out(data)
    if isinstance(result.get("method"), str):
        result["method"] = {"name": result["method"]}
    if isinstance(result.get("prompts"), str | list | tuple):
        result["prompts"] = {"source": result["prompts"]}
    compare = result.get("compare")
    if isinstance(compare, Mapping) and isinstance(compare.get("methods"), list | tuple):
        result["compare"] = {**compare, "methods": [_compared(e) for e in compare["methods"]]}
    return result


def _compared(entry: Any) -> Any:
    """`best_of_n` as `{method: {name: best_of_n}}`, and so the method of an entry with a label."""
    if isinstance(entry, str):
        return {"method": {"name": entry}}
    if isinstance(entry, Mapping) and isinstance(entry.get("method"), str):
        return {**entry, "method": {"name": entry["method"]}}
    return entry


def write_out_noisy(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a noisy reward: `objective: soft_value`, and prompts as a source or a list."""
    result = write_out_steering(data)
    if isinstance(result.get("objective"), str):
        result["objective"] = {"name": result["objective"]}
    return result


def reward(value: Any) -> Any:
    """`clip` as `{name: clip}`, `my.py:Sharpness` as `{name: code, target: ...}`."""
    if not isinstance(value, str):
        return value
    return {"name": "code", "target": value} if ":" in value else {"name": value}


def _rewards(value: Any) -> Any:
    if isinstance(value, str):
        return [reward(value)]
    return [reward(entry) for entry in value] if isinstance(value, list | tuple) else value
