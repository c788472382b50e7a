"""Predicted ends as media: the decoder's, or a cheap linear picture of the latent.

n states, *S a latent's shape: (C, h, w), or packed (h w, C). A latent pixel stands for a patch of
f x f pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from flowalign.errors import ConfigError
from flowalign.protocols import Generator
from flowalign.steering.chain import pieces
from flowalign.steering.costs import Costs

NEIGHBOURHOOD = 5  # side, in latent pixels: decoders look around
RIDGE = 1e-2  # of the mean square of an input


class Preview(Protocol):
    """How a predicted end becomes media that rewards can score."""

    def __call__(self, x0: Tensor, groups: Sequence[int]) -> Tensor:
        """Media (n, ...) of predicted ends x0 (n, *S) of the groups with these numbers."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """The pipeline's own decoder, in calls of at most `batch_size`."""

    generator: Generator
    batch_size: int
    costs: Costs

    def __call__(self, x0: Tensor, groups: Sequence[int]) -> Tensor:
        """Media (n, ...) float32 on the CPU."""
        self.costs.decodes += len(x0)
        parts = [self.generator.decode(x0[p]) for p in pieces(len(x0), self.batch_size)]
        return torch.cat(parts).float().cpu()


@dataclass(frozen=True, kw_only=True, slots=True)
class Convolution:
    """A linear decoder: each patch is an affine map of the latent pixels around its own."""

    kernel: Tensor  # (3 f f, C, 5, 5)
    offset: Tensor  # (3 f f,)
    side: int  # f, pixels

    def __call__(self, grid: Tensor) -> Tensor:
        """Pictures (n, 3, f h, f w) of latents (n, C, h, w), cut to [0, 1]."""
        around = NEIGHBOURHOOD // 2
        patches = functional.conv2d(grid.float(), self.kernel, self.offset, padding=around)
        return functional.pixel_shuffle(patches, self.side).clamp(0.0, 1.0)


@dataclass(kw_only=True, slots=True)
class LinearPreview:
    """A linear decoder for every group, fitted on the spot.

    The first predictions of a group are decoded, and ridge regression finds the convolution that
    comes closest to the decoder on them; it makes the group's later previews. Fitted by group,
    because it is then closer (a decoder is not linear), and because neither the batch nor other
    prompts can change a particle's reward. The usual latent-to-RGB maps are one for all pictures
    and make one pixel of a latent pixel; ours keeps the resolution.
    """

    decode: Decoded
    decoders: dict[int, Convolution] = field(default_factory=dict)  # by group
    frame: tuple[int, ...] = ()  # (3, H, W)

    def __call__(self, x0: Tensor, groups: Sequence[int]) -> Tensor:
        """Pictures (n, 3, H, W) in [0, 1] on the CPU."""
        new = [row for row, group in enumerate(groups) if group not in self.decoders]
        if new:
            decoded = self.learn(x0[new], [groups[row] for row in new])
            if len(new) == len(groups):
                return decoded
        self.decode.costs.linear_previews += len(x0)
        grid = grid_of(x0, self.frame)
        own_rows = rows_of(groups)
        if len(own_rows) == 1:
            return self.decoders[groups[0]](grid).cpu()
        pictures = torch.empty(len(x0), *self.frame)
        for group, own in own_rows.items():
            pictures[own] = self.decoders[group](grid[own]).cpu()
        return pictures

    def learn(self, x0: Tensor, groups: Sequence[int]) -> Tensor:
        """Decode predictions of groups that have no map yet, and fit one to each."""
        pictures = self.decode(x0, groups)
        self.frame = check_frame(tuple(pictures.shape[1:]), tuple(x0.shape[1:]))
        grid = grid_of(x0, self.frame).cpu()
        for group, own in rows_of(groups).items():
            self.decoders[group] = fitted(grid[own], pictures[own], x0.device)
        return pictures


def rows_of(groups: Sequence[int]) -> dict[int, list[int]]:
    """The rows of each group, in order."""
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return rows


def check_frame(frame: tuple[int, ...], latent: tuple[int, ...]) -> tuple[int, ...]:
    """The picture's shape, where each latent pixel has a square patch of its own.

    Raises:
        ConfigError: the model makes no pictures, or its latents are laid out otherwise.
    """
    picture = len(frame) == 3 and frame[0] == 3 and len(latent) in (2, 3)
    if not picture or side_of(frame, latent) is None:
        what = f"a latent of shape {latent} is no grid of a medium of shape {frame}"
        fix = "linear previews are for pictures; use `method.preview: decode`"
        raise ConfigError("STEER-PREVIEW", "method.preview", what, fix)
    return frame


def side_of(frame: tuple[int, ...], latent: tuple[int, ...]) -> int | None:
    """f of the patches of f x f pixels; None when the sizes do not fit."""
    height, width = frame[1:]
    count = latent[0] if len(latent) == 2 else latent[1] * latent[2]
    side = round((height * width / count) ** 0.5)
    fits = side > 0 and height % side == 0 and width % side == 0
    if not fits or (height // side) * (width // side) != count:
        return None
    if len(latent) == 3 and latent[1:] != (height // side, width // side):
        return None
    return side


def grid_of(x0: Tensor, frame: tuple[int, ...]) -> Tensor:
    """(n, C, h, w) of latents in either layout."""
    if x0.ndim == 4:
        return x0
    side = side_of(frame, tuple(x0.shape[1:]))
    assert side is not None, "checked before"
    return x0.transpose(1, 2).unflatten(2, (frame[1] // side, frame[2] // side))


def fitted(grid: Tensor, pictures: Tensor, device: torch.device) -> Convolution:
    """The convolution M that minimises |A M - B|^2 + ridge |M|^2, its offset free.

    A row of A (n P, 25 C + 1) is the surroundings of a latent pixel and a one, a row of B
    (n P, 3 f f) its patch. Solved on the CPU, in float64, which not every device has.
    """
    side = pictures.shape[2] // grid.shape[2]
    around = NEIGHBOURHOOD // 2
    rows = functional.unfold(grid.float(), NEIGHBOURHOOD, padding=around).transpose(1, 2)
    a = rows.flatten(0, 1).double()
    a = torch.cat([a, torch.ones_like(a[:, :1])], dim=1)
    b = functional.unfold(pictures, side, stride=side).transpose(1, 2).flatten(0, 1).double()
    ridge = RIDGE * a[:, :-1].square().sum() / (a.shape[1] - 1)
    penalty = torch.full((a.shape[1],), float(ridge), dtype=torch.float64)
    penalty[-1] = 0.0
    found = torch.linalg.solve(a.T @ a + torch.diag(penalty), a.T @ b).float().to(device)
    kernel = found[:-1].T.reshape(b.shape[1], grid.shape[1], NEIGHBOURHOOD, NEIGHBOURHOOD)
    return Convolution(kernel=kernel.contiguous(), offset=found[-1], side=side)
