"""A statistic of the picture: brightness, saturation, contrast or sharpness.

Measures   `brightness`, the mean luma (BT.601: .299 R + .587 G + .114 B); `saturation`, the mean of
           the largest minus the smallest of the three colours; `contrast`, the standard deviation
           of luma (RMS contrast); `sharpness`, the variance of luma's Laplacian over the inner
           pixels. Blind to the prompt, and trivial to please: good for first runs, for a second
           term that holds a picture where it was, and with a negative weight.
Range      brightness and saturation [0, 1]; contrast [0, 1/2], 1/2 for half black and half white;
           sharpness [0, 16], 16 for a chequered picture.
Source     brightness and saturation as in the field's toy experiments; contrast is Peli's (1990)
           RMS contrast; sharpness is Pech-Pacheco et al. (2000), without their threshold.
Licence    this project's (Apache-2.0). Weights: none.
Masks      `sharpness` of a picture with fewer than 3 pixels a side.
Differentiable: yes, in the pixels; where a statistic has a corner the gradient is finite.
Group-only: no.
Cost       about 20 microseconds a 32x32 picture, 2 ms a 512x512 one, on one core.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowalign.config.rewards_rules import PictureReward
from flowalign.types import Modality, Sample

Measure = Literal["brightness", "saturation", "contrast", "sharpness"]
LUMA = (0.299, 0.587, 0.114)  # BT.601


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureStatistic:
    """One statistic of each picture, or its mean over the frames of each video."""

    measure: Measure
    name: str = "picture"
    modality: Modality = "image"
    differentiable: bool = True
    group_only: bool = False

    @property
    def score_range(self) -> tuple[float, float]:
        """Hard limits for pictures in [0, 1]."""
        return {"contrast": (0.0, 0.5), "sharpness": (0.0, 16.0)}.get(self.measure, (0.0, 1.0))

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """(statistic (N,), valid (N,)); keeps the gradient of the media."""
        function = MEASURES[self.measure]
        values = [function(sample.media.float()).mean().cpu() for sample in samples]
        large = [self.measure != "sharpness" or min(s.media.shape[-2:]) >= 3 for s in samples]
        stacked = torch.stack(values) if values else torch.zeros(0)
        return stacked, torch.tensor(large, dtype=torch.bool)


def luma(pictures: Tensor) -> Tensor:
    """(..., H, W) of (..., 3, H, W)."""
    weights = torch.tensor(LUMA, device=pictures.device)
    return (weights[:, None, None] * pictures).sum(-3)


def brightness(pictures: Tensor) -> Tensor:
    """Mean luma (...) of (..., 3, H, W)."""
    return luma(pictures).mean((-2, -1))


def saturation(pictures: Tensor) -> Tensor:
    """Mean of max - min over the colours, (...)."""
    return (pictures.amax(-3) - pictures.amin(-3)).mean((-2, -1))


def contrast(pictures: Tensor) -> Tensor:
    """sqrt(mean (y - mean y)^2) of luma y, (...)."""
    y = luma(pictures)
    centred = y - y.mean((-2, -1), keepdim=True)
    # The norm's gradient is 0 where a root's would be infinite: on a flat picture.
    norm = torch.linalg.vector_norm(centred, dim=(-2, -1))
    return norm / math.sqrt(y.shape[-1] * y.shape[-2])


def sharpness(pictures: Tensor) -> Tensor:
    """Variance over the inner pixels of y(up) + y(down) + y(left) + y(right) - 4 y, (...)."""
    y = luma(pictures)
    across = y[..., 1:-1, :-2] + y[..., 1:-1, 2:]
    along = y[..., :-2, 1:-1] + y[..., 2:, 1:-1]
    laplacian = across + along - 4 * y[..., 1:-1, 1:-1]
    return (laplacian - laplacian.mean((-2, -1), keepdim=True)).square().mean((-2, -1))


MEASURES: Mapping[Measure, Callable[[Tensor], Tensor]] = {
    "brightness": brightness,
    "saturation": saturation,
    "contrast": contrast,
    "sharpness": sharpness,
}


def from_config(config: PictureReward, *, device: torch.device) -> PictureStatistic:
    """The reward of a config; it works where the pictures are."""
    return PictureStatistic(measure=config.measure, modality=config.modality)
