"""Signed distances and antialiased coverage of the five shapes, shared by the renderer and the
verifier.

Letters: N shapes, H = W pixels. Coordinates in pixels, x to the right, y down; pixel (i, j) has its
centre at (j + 0.5, i + 0.5). Every shape of radius r fits the box [-r, r] x [-r, r] around its
centre.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowalign.worlds.shapes.scene import SHAPES

SQUARE_HALF_SIDE = 0.88  # of r; a full square would look larger than the circle of the same r
TRIANGLE_HALF_HEIGHT = 0.9
CROSS_HALF_WIDTH = 0.36


def _circle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (x * x + y * y).sqrt() - r


def _square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - SQUARE_HALF_SIDE * r


def _triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    # Apex (0, -h r), base from (-r, h r) to (r, h r).
    h = TRIANGLE_HALF_HEIGHT
    side = (2 * h * x.abs() - y - h * r) / math.hypot(2 * h, 1)
    return torch.maximum(side, y - h * r)


def _diamond(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (x.abs() + y.abs() - r) / math.sqrt(2)


def _cross(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    x, y, w = x.abs(), y.abs(), CROSS_HALF_WIDTH * r
    return torch.minimum(torch.maximum(x - r, y - w), torch.maximum(x - w, y - r))


_DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "cross": _cross,
}
# Area of each shape at r = 1, and how far its centre of mass lies below the centre of its box.
UNIT_AREA = {
    "circle": math.pi,
    "square": 4 * SQUARE_HALF_SIDE**2,
    "triangle": 2 * TRIANGLE_HALF_HEIGHT,
    "diamond": 2.0,
    "cross": 8 * CROSS_HALF_WIDTH - 4 * CROSS_HALF_WIDTH**2,
}
CENTROID_BELOW = {
    shape: TRIANGLE_HALF_HEIGHT / 3 if shape == "triangle" else 0.0 for shape in SHAPES
}


def coverage(shape: str, *, x: Tensor, y: Tensor, r: Tensor, size: int) -> Tensor:
    """How much of each pixel the shape covers, (N, size, size) in [0, 1], from centres and radii
    (N,) in pixels."""
    centre = torch.arange(size, dtype=torch.float32) + 0.5
    dx = centre[None, None, :] - x[:, None, None]
    dy = centre[None, :, None] - y[:, None, None]
    dx, dy = torch.broadcast_tensors(dx, dy)
    return (0.5 - _DISTANCES[shape](dx, dy, r[:, None, None])).clamp(0, 1)
