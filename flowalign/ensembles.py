"""Several rewards as opinions on one thing: their mean, median, or mean less their disagreement.

Shapes: rows (K, B) of K rewards on a common scale and B samples, shares (K,) that sum to 1.
Reward model ensembles against overoptimisation (arXiv 2310.02743); the smallest of the rewards,
its worst case, is `shaping.smallest`.
"""

from __future__ import annotations

from torch import Tensor


def shares_of(weights: Tensor) -> Tensor:
    """w_k / sum w of positive weights (K,)."""
    return weights / weights.sum()


def mean_of(rows: Tensor, shares: Tensor) -> Tensor:
    """sum_k p_k r_k, (B,)."""
    return (shares[:, None] * rows).sum(dim=0)


def disagreement(rows: Tensor, shares: Tensor) -> Tensor:
    """sqrt(sum_k p_k (r_k - mean)^2), (B,): 0 where all rewards agree."""
    centred = rows - mean_of(rows, shares)
    return mean_of(centred.square(), shares).sqrt()


def lower_bound(rows: Tensor, shares: Tensor, beta: float) -> Tensor:
    """mean - beta std, (B,): a sample on which the rewards disagree is trusted less.

    The paper's uncertainty-weighted objective takes off beta times the variance; the std is in the
    rewards' own units, so that beta means the same on any scale.
    """
    return mean_of(rows, shares) - beta * disagreement(rows, shares)


def middle(rows: Tensor) -> Tensor:
    """The median of the rewards, (B,), the mean of the two middle ones for an even K."""
    return rows.quantile(0.5, dim=0)
