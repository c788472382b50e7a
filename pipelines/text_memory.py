"""The negative prompt's text encoding, kept.

A guided pipeline encodes its negative prompt again with every prompt. It is the same each time, so
the text encoders are asked for it once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from flowalign.pipelines.intercept import Arguments, Forward, answered_one, forwarded


class TextMemory:
    """Answers of a pipeline's text encoders by encoder and input."""

    def __init__(self, pipe: DiffusionPipeline) -> None:
        components = pipe.components.items()
        encoders = [module for name, module in components if name.startswith("text_encoder")]
        self.encoders = [module for module in encoders if isinstance(module, torch.nn.Module)]
        self.known: dict[Hashable, Any] = {}

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Inside, every answer is kept."""
        with ExitStack() as stack:
            for number, encoder in enumerate(self.encoders):

                def answer(forward: Forward, given: Arguments, number: int = number) -> Any:
                    return self.known.setdefault(key(number, given), forwarded(forward, given))

                stack.enter_context(answered_one(encoder, answer))
            yield

    @contextmanager
    def recalling(self) -> Iterator[None]:
        """Inside, a kept answer is given again without a pass."""
        with ExitStack() as stack:
            for number, encoder in enumerate(self.encoders):

                def answer(forward: Forward, given: Arguments, number: int = number) -> Any:
                    asked = key(number, given)
                    return self.known[asked] if asked in self.known else forwarded(forward, given)

                stack.enter_context(answered_one(encoder, answer))
            yield


def key(number: int, given: Arguments) -> Hashable:
    """The encoder's number with its input's values; token ids and masks are short."""
    values = {path: value for path, value in given.items() if value is not None}
    return (number, *((path, plain(value)) for path, value in sorted(values.items(), key=str)))


def plain(value: Any) -> Hashable:
    """A tensor's shape and values; the text of anything else."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), tuple(value.flatten().tolist()))
    return repr(value)
