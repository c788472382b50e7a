"""Losses that train a reward model from preferences, as pure functions of its scores.

Every function gives one loss per pair, of the shape of its input; the caller takes the mean
(`masked_mean` over the entries that count). D = r(a) - r(b) is the score of a minus that of b, of
one prompt; sigma the logistic function. Only differences within a prompt are identified, so every
loss here is blind to a shift of all scores of a prompt, except `origin_penalty`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

TIE_FACTOR = 5.0  # k of Rao-Kupper in VideoReward (arXiv 2501.13918) and HPSv3 (2508.03789)
WIN_TIE_MARGIN = 3.0  # SoliReward (arXiv 2512.22170)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)


def bradley_terry(
    difference: Tensor, preferred: Tensor | float = 1.0, *, margin: Tensor | float = 0.0
) -> Tensor:
    """-p log sigma(D - m) - (1 - p) log sigma(-D - m), p the share of people who prefer a.

    `preferred` in [0, 1] is a label or a share of votes, 1/2 a tie. A `margin` >= 0 is asked of
    whoever wins: 0.57 in HPSv3 and in VideoReward's constant margin, or the difference of ratings.
    """
    wins, loses = logsigmoid(difference - margin), logsigmoid(-difference - margin)
    return -preferred * wins - (1.0 - preferred) * loses


def pick_loss(difference: Tensor, preferred: Tensor) -> Tensor:
    """KL of the people's choice (p, 1 - p) from (sigma(D), sigma(-D)), PickScore's criterion.

    arXiv 2305.01569: cross entropy, plus log(1/2) for a tie, so that a tie that is told as a tie
    costs 0. Subtracting the entropy of p does that for every share of votes.
    """
    entropy = torch.special.entr(preferred) + torch.special.entr(1.0 - preferred)
    return bradley_terry(difference, preferred) - entropy


def tie_log_probabilities(
    difference: Tensor, *, tie_factor: float = TIE_FACTOR
) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithms of P(a better), P(b better) and P(tie) of Rao and Kupper; they sum to one.

    P(a) = sigma(D - log k), P(b) = sigma(-D - log k), P(tie) = (k^2 - 1) P(a) P(b), k > 1. The
    larger k, the more ties: at D = 0 a share (k - 1) / (k + 1).
    """
    assert tie_factor > 1.0, tie_factor
    shift = math.log(tie_factor)
    a, b = logsigmoid(difference - shift), logsigmoid(-difference - shift)
    return a, b, a + b + math.log(tie_factor**2 - 1.0)


def bradley_terry_ties(
    difference: Tensor, label: Tensor, *, tie_factor: float = TIE_FACTOR
) -> Tensor:
    """-log P(label), label 1 (a better), -1 (b better) or 0 (tie): Bradley-Terry with ties.

    VideoReward (arXiv 2501.13918), BTT. Any other label is invalid and gives NaN: mask it.
    """
    a, b, tie = tie_log_probabilities(difference, tie_factor=tie_factor)
    invalid = torch.full_like(difference, torch.nan)
    decided = torch.where(label == 1, a, torch.where(label == -1, b, invalid))
    return -torch.where(label == 0, tie, decided)


def uncertain_bradley_terry(difference: Tensor, variance: Tensor) -> Tensor:
    """-log E sigma(z), z ~ N(D, v): a model that tells how sure it is of its scores.

    `difference` is that of the means, `variance` sigma_a^2 + sigma_b^2. By the probit approximation
    E sigma(z) = sigma(D / sqrt(1 + pi v / 8)), within .011 for v <= 4. Right pairs ask for a
    small variance, wrong ones for a large one, so that it measures uncertainty; HPSv3's own loss
    (`hpsv3_compat`) does not.
    """
    return -logsigmoid(difference / torch.sqrt(1.0 + math.pi / 8.0 * variance))


def hpsv3_compat(difference: Tensor, variance: Tensor) -> Tensor:
    """-E log sigma(z), z ~ N(D, v): the loss of HPSv3 (arXiv 2508.03789) as released.

    -log sigma is convex, so this grows with the variance whoever is right: its minimum is at v = 0,
    and the variance it learns is no uncertainty. The expectation is a sum over 64 Gauss-Hermite
    nodes; the release draws 1000 samples in float16.
    """
    nodes = torch.as_tensor(_NODES, dtype=difference.dtype, device=difference.device)
    weights = torch.as_tensor(_WEIGHTS, dtype=difference.dtype, device=difference.device)
    z = difference[..., None] + variance.sqrt()[..., None] * nodes
    return -(logsigmoid(z) * weights).sum(-1) / weights.sum()


def win_tie(difference: Tensor, tied: Tensor, *, margin: float = WIN_TIE_MARGIN) -> Tensor:
    """-log sigma(D - m), and where `tied` also -log sigma(-D - m): SoliReward's win-tie loss.

    Rao-Kupper with log k = m and without its constant. Ties pull the scores of good samples
    together, which leaves little to gain beyond "good".
    """
    loses = torch.where(tied, logsigmoid(-difference - margin), 0.0)
    return -logsigmoid(difference - margin) - loses


def win_tie_pairs(good: Tensor) -> tuple[Tensor, Tensor]:
    """(pairs (P, 2), tied (P,)) of samples that were judged one by one, as SoliReward pairs them.

    `good` (N,) bool. Every good sample wins over every bad one, of whatever prompt; two good ones
    tie; two bad ones are never compared. `pairs` holds row numbers, the winner first.
    """
    yes, no = good.nonzero()[:, 0], (~good).nonzero()[:, 0]
    wins = torch.cartesian_prod(yes, no).reshape(-1, 2)
    ties = torch.combinations(yes, 2)
    tied = torch.arange(len(wins) + len(ties)) >= len(wins)
    return torch.cat([wins, ties]), tied


def yes_logit(logits: Tensor, yes: Sequence[int], no: Sequence[int]) -> Tensor:
    """(...,) log P(yes) - log P(no) of `logits` (..., V), all spellings of each word together."""
    return logits[..., list(yes)].logsumexp(-1) - logits[..., list(no)].logsumexp(-1)


def symmetric_yes_loss(forward: Tensor, backward: Tensor, *, margin: float = 0.0) -> Tensor:
    """-log sigma(L - m), L = (l(a, b) - l(b, a)) / 2, a the preferred one.

    l(a, b) is `yes_logit` of "is the first one better" with a shown first. Swapping the pair flips
    L exactly, so that a liking for one place costs nothing and teaches nothing. After RewardDance
    (arXiv 2509.08826), which takes the probabilities in place of the logits.
    """
    return bradley_terry((forward - backward) / 2.0, margin=margin)


def hinge(difference: Tensor, *, margin: float = 1.0) -> Tensor:
    """max(0, m - D), a the better one."""
    return (margin - difference).clamp(min=0.0)


def origin_penalty(a: Tensor, b: Tensor) -> Tensor:
    """(r(a) + r(b))^2 of scores a and b: keeps scores around 0, which no other loss does."""
    return (a + b).square()


def masked_mean(losses: Tensor, valid: Tensor) -> Tensor:
    """Mean (0-dim) over the entries where `valid`; without any, 0 with a zero gradient.

    Others are left out, whatever their value. VideoAlign's code divides by all entries.
    """
    kept = losses[valid]
    return kept.sum() / max(kept.numel(), 1)
