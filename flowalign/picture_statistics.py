"""Numbers of a picture in which reward hacking often shows, and a thumbnail to compare by.

N samples, each an image (3, H, W) or a video (F, 3, H, W) in [0, 1]; K = 5 statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, max_pool2d

from flowalign.types import Sample

STATISTICS = ("saturation", "dark", "high_frequency", "grid", "strokes")
THUMBNAIL = 8  # pixels a side
WIDTH = len(STATISTICS) + 3 * THUMBNAIL**2  # of a row
DARK = 0.05  # luma below this is near black
CELL = 8  # pixels between the lines of the grid: the patch of most autoencoders
CONTRAST = 0.25  # of luma between a stroke and what lies on both of its sides
LUMA = (0.299, 0.587, 0.114)  # BT.601


def picture_rows(samples: Sequence[Sample]) -> Tensor:
    """(N, WIDTH) float32 on the CPU: the statistics, then the thumbnail; means over frames."""
    rows = []
    for sample in samples:
        frames = sample.media.detach().float().cpu().reshape(-1, 3, *sample.media.shape[-2:])
        small = adaptive_avg_pool2d(frames, THUMBNAIL).mean(dim=0).flatten()
        rows.append(torch.cat([statistics_of(frames).mean(dim=0), small]))
    return torch.stack(rows) if rows else torch.zeros(0, WIDTH)


def statistics_of(frames: Tensor) -> Tensor:
    """(F, 5) of frames (F, 3, H, W), in the order of `STATISTICS`.

    saturation: mean of max - min over the colours. dark: share of pixels that are near black.
    high_frequency: share of the luma's variance above a quarter cycle per pixel. grid: squared
    steps across the lines of an 8-pixel grid over those between all neighbours, 1 without a
    grid and for pictures smaller than 16 pixels. strokes: share of pixels in thin lines of high
    contrast, as overlaid text has them.
    """
    luma = (frames * torch.tensor(LUMA)[:, None, None]).sum(dim=1)
    saturation = (frames.amax(dim=1) - frames.amin(dim=1)).mean(dim=(1, 2))
    dark = (luma < DARK).float().mean(dim=(1, 2))
    found = [saturation, dark, high_frequency(luma), grid(luma), strokes(luma)]
    return torch.stack(found, dim=1)


def high_frequency(luma: Tensor) -> Tensor:
    """Share (F,) of the power of (F, H, W) at a frequency above 1/4 on either axis; 0 if flat."""
    power = torch.fft.fft2(luma - luma.mean(dim=(1, 2), keepdim=True)).abs().square()
    high = [torch.fft.fftfreq(size).abs() > 0.25 for size in luma.shape[1:]]
    fast = (high[0][:, None] | high[1]).float()
    total = power.sum(dim=(1, 2))
    share = (power * fast).sum(dim=(1, 2)) / total.clamp(min=1e-12)
    # Rounding leaves a flat picture some power, which is no texture.
    return torch.where(total > 1e-6 * luma[0].numel(), share, 0.0)


def grid(luma: Tensor) -> Tensor:
    """Mean squared step of (F, H, W) across every 8th line over that of all lines, (F,)."""
    if min(luma.shape[1:]) < 2 * CELL:
        return torch.ones(len(luma))
    steps = [luma.diff(dim=1).square().mean(dim=2), luma.diff(dim=2).square().mean(dim=1)]
    lines = torch.cat([one[:, CELL - 1 :: CELL] for one in steps], dim=1).mean(dim=1)
    every = torch.cat(steps, dim=1).mean(dim=1)
    return torch.where(every > 1e-9, lines / every.clamp(min=1e-9), 1.0)


def strokes(luma: Tensor) -> Tensor:
    """Share (F,) of the pixels of (F, H, W) that a top-hat transform finds, light or dark.

    An opening removes what is thinner than its window (a sixteenth of the shorter side, 3 pixels
    at least), a closing fills it in dark; edges of larger things stay. No recogniser: letters are
    strokes, so words that a policy learns to write show here, beside other fine lines.
    """
    size = max(1, min(luma.shape[1:]) // 32) * 2 + 1

    def dilated(picture: Tensor) -> Tensor:
        return max_pool2d(picture[:, None], size, stride=1, padding=size // 2)[:, 0]

    opened, closed = dilated(-dilated(-luma)), -dilated(-dilated(luma))
    thin = torch.maximum(luma - opened, closed - luma) > CONTRAST
    return thin.float().mean(dim=(1, 2))


def diversity(thumbnails: Tensor, unit: Tensor) -> float:
    """Mean distance between the thumbnails (N, D) of one prompt, `unit` (N,); NaN without a pair.

    Where every prompt has one sample, between all of them: less of it is still a collapse.
    """
    same = unit[:, None] == unit
    same.fill_diagonal_(False)
    if not same.any():
        same = ~torch.eye(len(unit), dtype=torch.bool)
    distance = torch.cdist(thumbnails.double(), thumbnails.double())
    return float(distance[same].mean())
