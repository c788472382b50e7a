"""JPEG size: how many kB a picture takes when it is compressed.

Measures   the bytes of the JPEG file of the 8-bit picture (round(255 x), as it would be saved), in
           kB of 1000 bytes. Blind to the prompt.
Range      0 to infinity, higher is less compressible; grows with the number of pixels
           (about 1 kB at 32x32, 20 to 300 kB at 512x512). A negative weight in the config asks for
           compressible pictures.
Source     DDPO (arXiv 2305.13301) section 5, compressibility and incompressibility. Published
           codes differ in sign and scale (-kB, -kB/500); here both are the weight's business.
Licence    this project's (Apache-2.0); the encoder is Pillow's libjpeg.
Weights    none. Differentiable: no. Group-only: no.
Cost       about 0.1 ms a 32x32 picture, 5 ms a 512x512 one, on one core.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from flowalign.config.rewards import JpegReward
from flowalign.media import to_uint8
from flowalign.types import Modality, Sample

BYTES_PER_KB = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegSize:
    """Size in kB of each picture as a JPEG of the given quality."""

    name: str = "jpeg"
    modality: Modality = "image"
    differentiable: bool = False
    group_only: bool = False
    score_range: tuple[float, float] = (0.0, math.inf)
    quality: int = 95

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(kB (N,), valid (N,)); valid everywhere."""
        sizes = [jpeg_bytes(sample.media, self.quality) / BYTES_PER_KB for sample in samples]
        return torch.tensor(sizes, dtype=torch.float32), torch.ones(len(sizes), dtype=torch.bool)


def jpeg_bytes(picture: Tensor, quality: int) -> int:
    """Length of the JPEG file of `picture` (3, H, W) in [0, 1], with Pillow's defaults."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(buffer, format="JPEG", quality=quality)
    return buffer.tell()


def from_config(config: JpegReward, *, device: torch.device) -> JpegSize:
    """The reward of a config; it works on the CPU wherever the pictures are."""
    return JpegSize(quality=config.quality)
