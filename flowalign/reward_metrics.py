"""How well a reward agrees with people about pairs: accuracies with and without ties.

P pairs; `difference` (P,) is the score of a minus that of b, `label` (P,) is 1 where people prefer
a, -1 where b, 0 for a tie.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class TieAccuracy:
    """Accuracy of three answers at the threshold that suits the scores best."""

    accuracy: float  # share of pairs told right as better, worse or tie
    threshold: float  # a pair is called a tie when |difference| <= this; negative: never


def accuracy_without_ties(difference: Tensor, label: Tensor) -> float:
    """Share of the pairs on which people decided that the score orders as they do.

    Equal scores count one half. NaN when people decided on no pair.
    """
    decided = label != 0
    agreement = (difference * label)[decided].sign()
    return float((1.0 + agreement.double()).mean() / 2.0)


def accuracy_with_ties(difference: Tensor, label: Tensor) -> TieAccuracy:
    """The best three-way accuracy over thresholds below which a pair is called a tie.

    arXiv 2305.14324, "tie calibration", as VideoGen-RewardBench (2501.13918) reports it: all
    |difference| are tried, and no ties at all. One sort and two running sums. Equal |difference|
    become ties together; of equal accuracies the smallest threshold is told.
    """
    size, order = difference.abs().double().sort()
    tied = (label == 0)[order]
    right = (difference.sign() == label.sign())[order] & ~tied
    # With the first n pairs called ties: ties among them, and right decisions among the others.
    as_ties = torch.cat([tied.new_zeros(1, dtype=torch.long), tied.cumsum(0)])
    right_of_first = torch.cat([right.new_zeros(1, dtype=torch.long), right.cumsum(0)])
    hits = as_ties + right_of_first[-1] - right_of_first
    possible = torch.ones(len(hits), dtype=torch.bool, device=hits.device)
    possible[1:-1] = size[1:] > size[:-1]  # a threshold cannot part equal sizes
    best = int(torch.where(possible, hits, -1).argmax())
    threshold = float(size[best - 1]) if best else -1.0
    return TieAccuracy(accuracy=int(hits[best]) / len(label), threshold=threshold)


def brier_score(difference: Tensor, label: Tensor, *, temperature: float = 1.0) -> float:
    """Mean squared error of sigma(D / T) as the probability that people prefer a; ties are 1/2.

    0 is best, 1/4 is what D = 0 everywhere gives without ties.
    """
    probability = (difference.double() / temperature).sigmoid()
    return float((probability - (1.0 + label.double()) / 2.0).square().mean())
