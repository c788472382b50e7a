"""Foreground, connected components and coverage mattes of pictures, batched and free of randomness.

Letters: B pictures, N components of all pictures together, H = W = 32 pixels. Pictures (B, 3, H, W)
in [0, 1].
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_CONTRAST = 0.19  # RGB distance to the background below which a pixel is background
MIN_AREA = 8  # pixels; the smallest thing that the renderer draws has 20
MAX_COMPONENTS = 6  # per picture, largest first: four things and two extras


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """The objects of all pictures, ordered by picture and then by falling area."""

    picture: Tensor  # (N,) int64, index of the picture
    slot: Tensor  # (N,) int64, 0 for the largest component of its picture
    mask: Tensor  # (N, H, W) bool, pixels covered by more than half
    matte: Tensor  # (N, H, W) float in [0, 1], coverage
    colour: Tensor  # (N, 3) float RGB of the interior
    interior: Tensor  # (N, H, W) float in [0, 1], weights summing to 1
    number: Tensor  # (B,) int64, components of MIN_AREA pixels or more, without a limit
    stray: Tensor  # (B,) float, pixels that differ from the background and belong to no component
    background: Tensor  # (B, 3) float RGB


def find_components(images: Tensor) -> Components:
    """Everything that stands out from the background of each picture."""
    background = _background(images)
    distance = (images - background[:, :, None, None]).square().sum(1).sqrt()
    # Half the contrast of the nearest object: the half-covered edge, whatever the object's colour.
    local = F.max_pool2d(distance[:, None], 5, stride=1, padding=2)[:, 0]
    foreground = distance > torch.clamp(0.5 * local, min=MIN_CONTRAST)
    labels = _labels(foreground)
    areas = torch.zeros(len(images), labels[0].numel() + 1, dtype=torch.int64)
    areas.scatter_add_(1, labels.flatten(1), torch.ones_like(labels.flatten(1)))
    areas[:, 0] = 0  # label 0 is the background
    number = (areas >= MIN_AREA).sum(1)
    top, label = areas.sort(dim=1, descending=True, stable=True)
    top, label = top[:, :MAX_COMPONENTS], label[:, :MAX_COMPONENTS]
    picture, slot = (top >= MIN_AREA).nonzero(as_tuple=True)
    mask = labels[picture] == label[picture, slot][:, None, None]
    stray = foreground.sum((1, 2)) - torch.where(areas >= MIN_AREA, areas, 0).sum(1)
    interior = _interior(mask)
    colour = (images[picture] * interior[:, None]).sum((2, 3))
    return Components(
        picture=picture,
        slot=slot,
        mask=mask,
        matte=_matte(images[picture], background[picture], colour, mask),
        colour=colour,
        interior=interior,
        number=number,
        stray=stray.float(),
        background=background,
    )


def _background(images: Tensor) -> Tensor:
    """Median of the outermost pixels, (B, 3): no object reaches them in a right picture."""
    rows = images[:, :, [0, -1], :].flatten(2)
    columns = images[:, :, 1:-1, [0, -1]].flatten(2)
    return torch.cat([rows, columns], dim=2).median(dim=2).values


def _labels(foreground: Tensor) -> Tensor:
    """4-connected component labels (B, H, W): 0 background, else 1 + the largest pixel index in the
    component.

    Each pixel takes the largest label of its neighbours, then the label of the pixel that its label
    points to; the fixed point does not depend on what else is in the batch.
    """
    batch, height, width = foreground.shape
    index = torch.arange(1, height * width + 1).reshape(1, height, width)
    labels = index * foreground
    while True:
        padded = F.pad(labels, (1, 1, 1, 1))
        around = torch.stack(
            [padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]]
        )
        spread = torch.maximum(labels, around.amax(0)) * foreground
        table = F.pad(spread.flatten(1), (1, 0))
        jumped = table.gather(1, spread.flatten(1)).reshape(batch, height, width)
        if torch.equal(jumped, labels):
            return labels
        labels = jumped


def _interior(mask: Tensor) -> Tensor:
    """Weights (N, H, W) of the pixels whose four neighbours are inside too; of all pixels where
    there is none."""
    solid = mask.float()
    padded = F.pad(solid, (1, 1, 1, 1))
    eroded = (
        solid
        * padded[:, :-2, 1:-1]
        * padded[:, 2:, 1:-1]
        * padded[:, 1:-1, :-2]
        * padded[:, 1:-1, 2:]
    )
    weights = torch.where(eroded.sum((1, 2), keepdim=True) >= 1, eroded, solid)
    return weights / weights.sum((1, 2), keepdim=True)


def _matte(images: Tensor, background: Tensor, colour: Tensor, mask: Tensor) -> Tensor:
    """Coverage (N, H, W): position of each pixel between background and object colour, near the
    object only."""
    near = F.max_pool2d(mask[:, None].float(), 3, stride=1, padding=1)[:, 0]
    axis = colour - background
    along = ((images - background[:, :, None, None]) * axis[:, :, None, None]).sum(1)
    return (along / axis.square().sum(1).clamp_min(1e-4)[:, None, None]).clamp(0, 1) * near
