"""The base script with a reward of your own: a function of samples.

flowalign train samples/own_reward.yaml --allow-code samples/own_reward.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowalign.types import Sample


def darkness(samples: Sequence[Sample]) -> Tensor:
    """1 for a black picture, 0 for a white one: (N,) float32 from media (3, H, W) in [0, 1]."""
    return torch.stack([1.0 - sample.media.mean() for sample in samples])
