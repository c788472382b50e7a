"""The stochastic step of DanceGRPO."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowalign.gaussian import Gaussian, full_precision, per_sample
from flowalign.paths import require_rectified_flow
from flowalign.protocols import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Dance:
    """Euler-Maruyama of the marginal-preserving SDE with constant g = eta.

    DanceGRPO (arXiv 2505.07818, eq. 8): x + dt (v + eta^2 epshat / (2 sigma)) + eta sqrt(-dt) z.
    Its code decodes x0hat of the last step; our schedules give that step noise 0 instead, which
    is the same picture.
    """

    def step(
        self, path: Path, x: Tensor, pred: Tensor, t: Tensor, t_next: Tensor, noise: Tensor
    ) -> Gaussian:
        """Law of x_next (B, *S); `noise` is eta >= 0, 0-dim or (B,)."""
        require_rectified_flow(path, "dance")
        assert bool((noise >= 0).all()), f"eta must not be negative, got {noise}"
        dt = t_next - t
        _, eps = path.split(x, pred, t)
        x, v = full_precision(x), full_precision(pred)
        push = noise.square() * dt / (2.0 * t)
        mean = x + per_sample(dt, x) * v + per_sample(push, x) * eps
        return Gaussian(mean=mean, std=noise * (-dt).sqrt())
