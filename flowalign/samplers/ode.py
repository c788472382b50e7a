"""The probability-flow ODE, one deterministic step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowalign.gaussian import Gaussian
from flowalign.protocols import Path
from flowalign.samplers.ddim import DDIM


@dataclass(frozen=True, kw_only=True, slots=True)
class ODE:
    """DDIM without noise: x_next = alpha' x0hat + sigma' epshat.

    On a rectified flow this is Euler's step x + (t_next - t) v.
    """

    def step(
        self, path: Path, x: Tensor, pred: Tensor, t: Tensor, t_next: Tensor, noise: Tensor
    ) -> Gaussian:
        """The point mass of x_next (B, *S); `noise` must be 0."""
        assert bool((noise == 0).all()), f"the ODE takes no noise, got {noise}"
        return DDIM().step(path, x, pred, t, t_next, noise)
