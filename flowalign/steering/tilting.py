"""The network's output of a tilted law."""

from __future__ import annotations

from torch import Tensor

from flowalign.gaussian import full_precision
from flowalign.protocols import Path


def tilted(path: Path, pred: Tensor, gradient: Tensor, t: Tensor) -> Tensor:
    """The native output (n, *S) of the law p_t(x) exp(V(x)), with `gradient` of V at x.

    The score gains the gradient (Dhariwal and Nichol, arXiv 2105.05233, eq. 14), so
    eps_hat = eps - sigma grad V and x0_hat = x0 + sigma^2 / alpha grad V. On a rectified flow
    v_hat = v - t / (1 - t) grad V.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    push = full_precision(gradient)
    shift = path.target(float(sigma**2 / alpha) * push, float(-sigma) * push, t)
    return full_precision(pred) + shift
