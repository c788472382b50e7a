"""What `encode_prompt` answered, kept as a `Cond` and given back from memory.

A pipeline calls `encode_prompt` once or twice (negative prompt) and uses whatever it returns. We
record these answers for one prompt at a time, and later answer for any batch of prompts, so that
no text encoder runs again and no argument's name has to be known. Every prompt is encoded alone:
its embedding cannot depend on the prompts beside it.

A leaf is one value inside the answers. B prompts; f rows per prompt (2 where the pipeline joins
negative and positive embeddings itself, all negatives first).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flowalign.types import Cond

Path = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaf:
    """How one value inside the answers depends on the prompts.

    kind: `rows` a tensor of f rows per prompt, `ragged` the same with a length of its own,
    `mask` the ragged mask that the pipeline leaves out when nothing is padded, `items` a list
    with one tensor per prompt, `shared` equal for all prompts.
    """

    path: Path
    kind: Literal["rows", "ragged", "mask", "items", "shared"]
    rows: int
    dtype: torch.dtype | None

    @property
    def name(self) -> str:
        """Key in `Cond`."""
        return "encode_prompt." + ".".join(map(str, self.path))


class Recorder:
    """Stands in for `pipe.encode_prompt` and keeps each answer."""

    def __init__(self, encode_prompt: Callable[..., Any]) -> None:
        self.encode_prompt = encode_prompt
        self.answers: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self.encode_prompt(*args, **kwargs)
        self.answers.append(answer)
        return answer


class Reciter:
    """Stands in for `pipe.encode_prompt` and gives the kept answers in order."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self.answers = iter(answers)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return next(self.answers)


def leaves(answer: Any, path: Path = ()) -> dict[Path, Any]:
    """Values of nested tuples by position; a list of tensors is one value."""
    if isinstance(answer, tuple) or (isinstance(answer, list) and not is_items(answer)):
        found: dict[Path, Any] = {}
        for i, value in enumerate(answer):
            found |= leaves(value, (*path, i))
        return found
    return {path: answer}


def is_items(value: Any) -> bool:
    """Whether `value` is a list of tensors, one per prompt."""
    return isinstance(value, list) and all(isinstance(item, Tensor) for item in value)


def rebuilt(answer: Any, values: dict[Path, Any], path: Path = ()) -> Any:
    """The nesting of `answer` with the values replaced."""
    if path in values:
        return values[path]
    parts = [rebuilt(value, values, (*path, i)) for i, value in enumerate(answer)]
    return tuple(parts) if isinstance(answer, tuple) else parts


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The nesting of the answers and how each of its values depends on the prompts."""

    skeleton: Any  # nested tuples and lists with None in place of the values
    leaves: tuple[Leaf, ...]


def layout(first: Any, second: Any, pair: Any) -> Layout:
    """How answers depend on prompts, from those for one prompt, another, and both together."""
    ones, others, pairs = leaves(first), leaves(second), leaves(pair)
    found = tuple(leaf(path, ones[path], others[path], pairs[path]) for path in pairs)
    return Layout(skeleton=rebuilt(pair, dict.fromkeys(pairs)), leaves=found)


def leaf(path: Path, one: Any, other: Any, pair: Any) -> Leaf:
    """The layout of one value."""
    if is_items(pair) and pair:
        return Leaf(path=path, kind="items", rows=1, dtype=None)
    if not isinstance(pair, Tensor):
        return Leaf(path=path, kind="shared", rows=0, dtype=None)
    if one is None or other is None:
        return Leaf(path=path, kind="mask", rows=1, dtype=pair.dtype)
    rows = pair.shape[0] - one.shape[0]
    if rows == 0:
        return Leaf(path=path, kind="shared", rows=0, dtype=None)
    kind = "rows" if one.shape == other.shape else "ragged"
    return Leaf(path=path, kind=kind, rows=rows, dtype=pair.dtype)


def condition(answers: Any, plan: Layout) -> Cond:
    """The Cond of one prompt."""
    values = leaves(answers)
    length = next((values[each.path].shape[1] for each in plan.leaves if each.kind == "ragged"), 0)
    batched: dict[str, Tensor | Sequence[Tensor]] = {}
    shared: dict[str, object] = {}
    for each in plan.leaves:
        value = values[each.path]
        if each.kind == "shared":
            shared[each.name] = value
        elif each.kind == "items":
            batched[each.name] = value
        elif each.kind == "rows":
            batched[each.name] = value.unsqueeze(0)
        elif each.kind == "ragged":
            batched[each.name] = [value]
        else:
            full = torch.ones(1, length, dtype=each.dtype)
            batched[each.name] = [full if value is None else value]
    return Cond(batched=batched, shared=shared, size=1)


def answers_for(cond: Cond, plan: Layout) -> Any:
    """What `encode_prompt` would answer for the prompts of `cond`."""
    values: dict[Path, Any] = {}
    for each in plan.leaves:
        if each.kind == "shared":
            values[each.path] = cond.shared[each.name]
        elif each.kind == "items":
            values[each.path] = list(cond.batched[each.name])
        else:
            values[each.path] = gathered(cond.batched[each.name], each)
    return rebuilt(plan.skeleton, values)


def gathered(value: Tensor | Sequence[Tensor], each: Leaf) -> Tensor | None:
    """(f B, ...) from f rows per prompt, block by block; shorter rows end in zeros."""
    if not isinstance(value, Tensor):
        longest = max(row.shape[1] for row in value)
        value = torch.stack([padded(row, longest) for row in value])
        if each.kind == "mask" and bool(value.all()):
            return None
    return value.transpose(0, 1).flatten(0, 1)


def padded(row: Tensor, length: int) -> Tensor:
    """Row (f, L, ...) with zeros after L up to `length`."""
    missing = length - row.shape[1]
    if missing == 0:
        return row
    return torch.cat([row, row.new_zeros(row.shape[0], missing, *row.shape[2:])], dim=1)


def rows_by_length(cond: Cond, plan: Layout) -> list[list[int]]:
    """Rows of `cond` in groups of equal length."""
    groups: dict[tuple[int, ...], list[int]] = {}
    ragged = [cond.batched[each.name] for each in plan.leaves if each.kind == "ragged"]
    for row in range(cond.size):
        groups.setdefault(tuple(value[row].shape[1] for value in ragged), []).append(row)
    return list(groups.values())
