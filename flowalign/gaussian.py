"""The law of one sampling step: an isotropic Gaussian over a latent.

Shapes: B samples, *S the latent shape of one sample, D the number of elements of S.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def full_precision(x: Tensor) -> Tensor:
    """`x` in float32, or untouched when it is float64: no step is computed in half precision.

    bfloat16 keeps 8 bits; the coefficients of a step near t = 0 or t = 1 need more.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def per_sample(value: Tensor, like: Tensor) -> Tensor:
    """A 0-dim or (B,) coefficient, rounded to the dtype of `like` and broadcast to (B, *S).

    A 0-dim value stays where it is: a CPU scalar multiplies a GPU tensor without a copy.
    """
    if value.ndim == 0:
        return value.to(like.dtype)
    return value.to(device=like.device, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def element_mean(x: Tensor) -> Tensor:
    """Mean over the D latent elements of each sample: (B, *S) -> (B,)."""
    return x.flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaussian:
    """N(mean, std^2 I). A log-prob is the mean over the D elements, not the sum."""

    mean: Tensor  # (B, *S) float32 (float64 where the inputs were)
    std: Tensor  # 0-dim or (B,) float64, >= 0, without gradient

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std noise, with standard normal `noise` (B, *S)."""
        return self.mean + per_sample(self.std, self.mean) * noise.to(self.mean.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std) / D, (B,), differentiable in the mean only.

        `x` (B, *S) must already be rounded to the dtype in which it is stored, or the ratio of
        the first update is not 1. The mean over elements is what published clip ranges refer
        to: 1e-4 of it is 6.6 nats of the whole latent at D = 65536.
        """
        assert bool((self.std > 0).all()), "a deterministic step has no log-prob"
        x = x.detach().to(self.mean.dtype)
        std = self.std.detach()
        z = (x - self.mean) / per_sample(std, self.mean)
        log_std = std.log().to(device=x.device if std.ndim else std.device, dtype=x.dtype)
        return -0.5 * element_mean(z.square()) - log_std - HALF_LOG_2PI

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) / D, (B,), for two Gaussians of one std: |m1 - m2|^2 / (2 D std^2)."""
        assert bool((self.std > 0).all()), "a deterministic step has no KL"
        assert torch.equal(self.std, other.std), "this KL holds for equal std"
        z = (self.mean - other.mean) / per_sample(self.std.detach(), self.mean)
        return 0.5 * element_mean(z.square())
