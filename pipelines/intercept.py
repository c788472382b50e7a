"""Answering a module's calls in its place, for the time of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

Argument = tuple[int | str, ...]  # place or name, then keys inside dictionaries
Arguments = dict[Argument, Any]
Forward = Callable[..., Any]
Answer = Callable[[Forward, Arguments], Any]


@contextmanager
def answered(modules: Sequence[torch.nn.Module], answer: Answer) -> Iterator[None]:
    """Inside, calls of the modules are answered by `answer(their forward, arguments)`."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(answered_one(module, answer))
        yield


@contextmanager
def answered_one(module: torch.nn.Module, answer: Answer) -> Iterator[None]:
    """`answered` for one module; a forward that was set on the instance is put back."""
    members, forward = vars(module), module.forward
    own = {"forward": members["forward"]} if "forward" in members else {}

    def answering(*args: Any, **kwargs: Any) -> Any:
        return answer(forward, flat({**dict(enumerate(args)), **kwargs}))

    members["forward"] = answering
    try:
        yield
    finally:
        del members["forward"]
        members.update(own)


def forwarded(forward: Forward, given: Arguments) -> Any:
    """What `forward` answers to the arguments."""
    arguments = nested(given)
    places = sorted(key for key in arguments if isinstance(key, int))
    named = {key: value for key, value in arguments.items() if isinstance(key, str)}
    return forward(*(arguments[place] for place in places), **named)


def flat(arguments: Mapping[Any, Any], path: Argument = ()) -> Arguments:
    """Values of nested dictionaries by their path."""
    found: Arguments = {}
    for key, value in arguments.items():
        inside = isinstance(value, dict) and value
        found |= flat(value, (*path, key)) if inside else {(*path, key): value}
    return found


def nested(given: Arguments) -> dict[int | str, Any]:
    """Undo `flat`."""
    found: dict[int | str, Any] = {}
    for path, value in given.items():
        inner = found
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return found
