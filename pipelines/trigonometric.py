"""x = cos(pi t / 2) x0 + sin(pi t / 2) eps with v-prediction: EDM-style audio models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.gaussian import full_precision, per_sample


@dataclass(frozen=True, kw_only=True, slots=True)
class Trigonometric:
    """A variance-preserving path in continuous time; the native output is alpha eps - sigma x0."""

    def alpha(self, t: Tensor) -> Tensor:
        """cos(pi t / 2)."""
        return torch.cos(0.5 * torch.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        """sin(pi t / 2)."""
        return torch.sin(0.5 * torch.pi * t)

    def split(self, x: Tensor, pred: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """x0hat = alpha x - sigma v, epshat = sigma x + alpha v (arXiv 2202.00512, appendix D)."""
        x, v = full_precision(x), full_precision(pred)
        alpha, sigma = per_sample(self.alpha(t), x), per_sample(self.sigma(t), x)
        return alpha * x - sigma * v, sigma * x + alpha * v

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """v = alpha eps - sigma x0."""
        x0, eps = full_precision(x0), full_precision(eps)
        return per_sample(self.alpha(t), x0) * eps - per_sample(self.sigma(t), x0) * x0
