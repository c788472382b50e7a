"""The stochastic step of Flow-GRPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.gaussian import Gaussian, full_precision, per_sample
from flowalign.paths import require_rectified_flow
from flowalign.protocols import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowSDE:
    """Euler-Maruyama of the marginal-preserving SDE with g = a sqrt(sigma / (1 - sigma)).

    Flow-GRPO (arXiv 2505.05470, eq. 9). At sigma = 1 its code replaces 1 - sigma in g by
    1 - `sigma_max`, the second level of the grid; that makes the variance of the first state
    1 + a^4 / 4 whatever the number of steps. We keep it for parity; DDIM has no such step.
    Its last step is noisy in the published code; our schedules give it noise 0.
    """

    sigma_max: float | None = None  # None: the next level, which is the second one when t = 1

    def step(
        self, path: Path, x: Tensor, pred: Tensor, t: Tensor, t_next: Tensor, noise: Tensor
    ) -> Gaussian:
        """Law of x_next (B, *S); `noise` is a >= 0, 0-dim or (B,)."""
        require_rectified_flow(path, "flow_sde")
        assert bool((noise >= 0).all()), f"a must not be negative, got {noise}"
        sigma_max = t_next if self.sigma_max is None else torch.full_like(t, self.sigma_max)
        signal = 1.0 - torch.where(t == 1.0, sigma_max, t)
        g2 = noise.square() * t / signal
        dt = t_next - t
        x, v = full_precision(x), full_precision(pred)
        on_x = 1.0 + g2 * dt / (2.0 * t)
        on_v = dt * (1.0 + g2 * (1.0 - t) / (2.0 * t))
        mean = per_sample(on_x, x) * x + per_sample(on_v, x) * v
        return Gaussian(mean=mean, std=(g2 * -dt).sqrt())
