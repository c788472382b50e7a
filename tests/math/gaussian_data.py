"""One-dimensional Gaussian data, for which every kernel is linear and every law is exact.

With x0 ~ N(m, d2), E[x0 | x] is linear in x, so a sampling step maps N(mean, var) to another
Gaussian. Running the kernel at x = 0 and x = 1 finds that map without knowing its formula.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.protocols import Path, Sampler


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussianData:
    """x0 ~ N(mean, variance)."""

    mean: float = 1.5
    variance: float = 0.64

    def prediction(self, path: Path, x: Tensor, t: Tensor) -> Tensor:
        """The native output of a perfect network at x (n, 1)."""
        alpha, sigma = path.alpha(t), path.sigma(t)
        total = alpha.square() * self.variance + sigma.square()
        x0 = self.mean + alpha * self.variance / total * (x - alpha * self.mean)
        eps = sigma / total * (x - alpha * self.mean)
        return path.target(x0, eps, t)

    def marginal(self, path: Path, t: Tensor) -> tuple[float, float]:
        """Mean and variance of x_t."""
        alpha, sigma = path.alpha(t), path.sigma(t)
        variance = alpha.square() * self.variance + sigma.square()
        return float(alpha * self.mean), float(variance)


def laws(
    data: GaussianData,
    sampler: Sampler,
    path: Path,
    t: Tensor,
    noise: Tensor,
    *,
    start: tuple[float, float] | None = None,
) -> list[tuple[float, float]]:
    """Exact (mean, variance) of every state (T+1); `start` replaces the law of the first one."""
    found = [start or data.marginal(path, t[0])]
    probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for i in range(len(noise)):
        pred = data.prediction(path, probe, t[i])
        law = sampler.step(path, probe, pred, t[i], t[i + 1], noise[i])
        shift, slope = float(law.mean[0, 0]), float(law.mean[1, 0] - law.mean[0, 0])
        mean, variance = found[-1]
        found.append((shift + slope * mean, slope**2 * variance + float(law.std.square())))
    return found
