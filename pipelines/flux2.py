"""Flux 2: the loop holds packed latents, while the call takes them as a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from flowalign.pipelines.arguments import Arguments


def unpacked(pipe: DiffusionPipeline, arguments: Arguments) -> Callable[[Tensor], Tensor]:
    """The map from the loop's tokens (B, h w, C) to the argument `latents` (B, C, h, w)."""
    members: dict[str, Any] = vars(pipe)
    factor = 2 * members["vae_scale_factor"]  # the autoencoder's and that of 2 x 2 patches
    default = members["default_sample_size"] * members["vae_scale_factor"]
    height = arguments.every.get("height", default) // factor
    width = arguments.every.get("width", default) // factor

    def picture(x: Tensor) -> Tensor:
        return x.transpose(1, 2).unflatten(2, (height, width))

    return picture
