"""DDIM with eta on any path: the kernel that keeps the marginals for every noise schedule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowalign.gaussian import Gaussian, per_sample
from flowalign.protocols import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class DDIM:
    """N(alpha' x0hat + sqrt(sigma'^2 - s^2) epshat, s^2), s = eta sigma' sqrt(1 - q^2),
    q = alpha sigma' / (alpha' sigma).

    Song et al., arXiv 2010.02502, eq. 12 and 16, written for any (alpha, sigma): its
    variance-preserving form and DiffusionNFT's rectified-flow form are special cases. Finite at
    t = 1 where alpha may be 0, deterministic by itself where sigma' = 0; eta = 1 equals the
    first-order SDE-DPM-Solver++.
    """

    def step(
        self, path: Path, x: Tensor, pred: Tensor, t: Tensor, t_next: Tensor, noise: Tensor
    ) -> Gaussian:
        """Law of x_next (B, *S); `noise` is eta in [0, 1], 0-dim or (B,)."""
        assert bool(((noise >= 0) & (noise <= 1)).all()), f"eta must be in [0, 1], got {noise}"
        x0, eps = path.split(x, pred, t)
        sigma_next, alpha_next = path.sigma(t_next), path.alpha(t_next)
        q = path.alpha(t) * sigma_next / (alpha_next * path.sigma(t))
        # 1 - q^2 is 0 where the levels have equal abar (a final alpha taken from the table);
        # rounding must not make it negative.
        fresh = noise.square() * (1.0 - q.square()).clamp(min=0.0)
        std = sigma_next * fresh.sqrt()
        kept = sigma_next * (1.0 - fresh).sqrt()
        mean = per_sample(alpha_next, x0) * x0 + per_sample(kept, x0) * eps
        return Gaussian(mean=mean, std=std)
