"""Coefficients-preserving sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.gaussian import Gaussian, per_sample
from flowalign.protocols import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class CPS:
    """N(alpha' x0hat + sqrt(sigma'^2 - s^2) epshat, s^2) with s = sigma' sin(a pi / 2).

    Flow-CPS (arXiv 2509.05952). It keeps the noise coefficient of every state, not the marginal
    law: its limit of many steps is a sharper distribution. The authors' code scores x_next with
    -mean((x_next - mean)^2); we use the exact log-density, so a step's weight differs by 2 s^2.
    sin is not monotone beyond a = 1, hence the bound.
    """

    def step(
        self, path: Path, x: Tensor, pred: Tensor, t: Tensor, t_next: Tensor, noise: Tensor
    ) -> Gaussian:
        """Law of x_next (B, *S); `noise` is a in [0, 1], 0-dim or (B,)."""
        assert bool(((noise >= 0) & (noise <= 1)).all()), f"a must be in [0, 1], got {noise}"
        x0, eps = path.split(x, pred, t)
        angle = noise * (math.pi / 2.0)
        std = path.sigma(t_next) * torch.sin(angle)
        kept = path.sigma(t_next) * torch.cos(angle)
        mean = per_sample(path.alpha(t_next), x0) * x0 + per_sample(kept, x0) * eps
        return Gaussian(mean=mean, std=std)
