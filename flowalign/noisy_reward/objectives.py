"""What the heads of a noisy reward are fitted to.

Letters: n states, K heads. h (n, K) are answers at noisy states, r (n, K) the rewards of their
clean ends, both in standard deviations; valid (n, K) says where r is known.

Guidance targets p(x) exp(lambda r(x)) when h is the soft value
V(x_t) = log E[exp(lambda r(x_0)) | x_t] / lambda, and only then, so fitting h to it is the default.
The paper fits preferences of noisy pairs (Bradley-Terry, arXiv 2501.13918). The minimiser then is
about the mean log-odds of winning: its scale is not the reward's, and it tilts too little where
x_t leaves the end open. Several heads add up exactly where their rewards are independent given x_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flowalign.reward_losses import bradley_terry, bradley_terry_ties


class Objective(Protocol):
    """A loss of states; with `pairs`, rows 2 i and 2 i + 1 share a prompt and a level."""

    @property
    def pairs(self) -> bool: ...

    def __call__(self, h: Tensor, r: Tensor, valid: Tensor) -> Tensor:
        """Mean loss (0-dim)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftValue:
    """Regression to log E[exp(lambda r) | x_t] / lambda; to E[r | x_t] as lambda goes to 0."""

    strength: float  # lambda, for rewards in standard deviations
    pairs: bool = False

    def __call__(self, h: Tensor, r: Tensor, valid: Tensor) -> Tensor:
        """Mean of (exp(lambda d) - lambda d - 1) / lambda^2, d = r - h.

        E[exp(lambda (r - h))] - lambda E[r - h] is least where E[exp(lambda r)] = exp(lambda h).
        """
        difference = torch.where(valid, r - h, 0.0)
        if self.strength == 0:
            return masked_mean(0.5 * difference.square(), valid)
        u = self.strength * difference
        return masked_mean((torch.expm1(u) - u) / self.strength**2, valid)


@dataclass(frozen=True, kw_only=True, slots=True)
class BradleyTerry:
    """Which of two states of one prompt and level has the better end (arXiv 2501.13918)."""

    ties: float  # k of Rao and Kupper; 1 leaves ties out
    pairs: bool = True

    def __call__(self, h: Tensor, r: Tensor, valid: Tensor) -> Tensor:
        """Mean of -log P(outcome) over pairs and heads; see `flowalign.reward_losses`."""
        difference, label = h[::2] - h[1::2], (r[::2] - r[1::2]).sign()
        known = valid[::2] & valid[1::2]
        if self.ties == 1:
            return masked_mean(bradley_terry(label * difference), known & (label != 0))
        losses = bradley_terry_ties(difference, label, tie_factor=self.ties)
        return masked_mean(losses, known)


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over what is valid; 0 where nothing is."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp_min(1)
