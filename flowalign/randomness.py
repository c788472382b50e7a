"""Randomness by key: a sample's noise depends on its key alone.

The key is (seed, stream, prompt_id, sample_id, step). Batch size, rank, order of evaluation and
a resume cannot change it, because no generator has a history.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(
    seed: int, stream: str, prompt_id: int = 0, sample_id: int = 0, step: int = 0
) -> torch.Generator:
    """A CPU generator seeded with the first 63 bits of SHA-256 of the key.

    `stream` names the purpose ("init", "step", "prompts", ...): streams are independent.
    """
    head = struct.pack("<qqqq", seed, prompt_id, sample_id, step)
    digest = hashlib.sha256(head + stream.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def normal(
    shape: Sequence[int],
    *,
    seed: int,
    stream: str,
    prompt_ids: Sequence[int],
    sample_ids: Sequence[int],
    step: int = 0,
) -> Tensor:
    """Standard normal noise `(B, *shape)`, float32 on the CPU, row b from its own key."""
    rows = [
        torch.randn(tuple(shape), generator=generator(seed, stream, prompt_id, sample_id, step))
        for prompt_id, sample_id in zip(prompt_ids, sample_ids, strict=True)
    ]
    return torch.stack(rows)
