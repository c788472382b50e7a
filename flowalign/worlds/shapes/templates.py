"""Which shape and which colour a component has: fits of the ideal shapes, and distances to the
palette.

Letters: N components, S = 5 shapes, C = 8 colours, H = W = 32 pixels.
"""

import torch
from torch import Tensor

from flowalign.worlds.shapes.geometry import CENTROID_BELOW, UNIT_AREA, coverage
from flowalign.worlds.shapes.scene import BACKGROUNDS, COLOURS, SHAPES

PALETTE = torch.tensor(list(COLOURS.values())) / 255.0
GROUNDS = torch.tensor(list(BACKGROUNDS.values())) / 255.0
SHAPE_TEMPERATURE = 0.035  # of IoU; a right shape leads the next best by 0.1 or more
IOU_RANGE = (0.60, 0.86)  # where the fit starts to count, and where it counts fully
COLOUR_TEMPERATURE = 0.02  # of squared RGB distance
COLOUR_RANGE = (
    0.24,
    0.40,
)  # RGB distance to the palette colour up to which a pixel counts fully, and not at all


def shape_fit(matte: Tensor) -> Tensor:
    """Soft intersection over union (N, S) of coverage mattes (N, H, W) with each ideal shape.

    The ideal shape takes its area and its centre of mass from the matte, so nothing is searched.
    """
    size = matte.shape[-1]
    centre = torch.arange(size, dtype=torch.float32) + 0.5
    area = matte.sum((1, 2)).clamp_min(1e-3)
    x = (matte * centre[None, None, :]).sum((1, 2)) / area
    y = (matte * centre[None, :, None]).sum((1, 2)) / area
    fits = []
    for shape in SHAPES:
        r = (area / UNIT_AREA[shape]).sqrt()
        ideal = coverage(shape, x=x, y=y - CENTROID_BELOW[shape] * r, r=r, size=size)
        fits.append(
            torch.minimum(matte, ideal).sum((1, 2)) / torch.maximum(matte, ideal).sum((1, 2))
        )
    return torch.stack(fits, dim=1)


def shape_confidence(fit: Tensor) -> Tensor:
    """Confidence (N, S) in [0, 1]: how clearly a shape leads, times how good the best fit is at
    all."""
    low, high = IOU_RANGE
    quality = ((fit - low) / (high - low)).clamp(0, 1)
    return torch.softmax(fit / SHAPE_TEMPERATURE, dim=1) * quality


def colour_confidence(images: Tensor, interior: Tensor) -> Tensor:
    """Share (N, C) of the interior, (N, H, W) weights, that has each palette colour; pictures (N,
    3, H, W)."""
    rows, i, j = interior.nonzero(as_tuple=True)
    squared = (images[rows, :, i, j][:, None] - PALETTE[None]).square().sum(2)
    nearest = torch.softmax(-squared / COLOUR_TEMPERATURE, dim=1)
    low, high = COLOUR_RANGE
    close = ((high - squared.sqrt()) / (high - low)).clamp(0, 1)
    share = nearest * close * interior[rows, i, j][:, None]
    return torch.zeros(len(images), len(PALETTE)).index_add_(0, rows, share)


def ground_confidence(background: Tensor) -> Tensor:
    """Confidence (B, 3) in [0, 1] for black, white and gray from background colours (B, 3)."""
    low, high = 0.15, 0.40
    distance = (background[:, None] - GROUNDS[None]).square().sum(2).sqrt()
    return ((high - distance) / (high - low)).clamp(0, 1)
