"""Losses of reward models: probabilities that sum to one, limits, antisymmetry, minima."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowalign.reward_losses import (
    bradley_terry,
    bradley_terry_ties,
    hinge,
    hpsv3_compat,
    masked_mean,
    origin_penalty,
    pick_loss,
    symmetric_yes_loss,
    tie_log_probabilities,
    uncertain_bradley_terry,
    win_tie,
    win_tie_pairs,
    yes_logit,
)
from flowalign.reward_metrics import accuracy_with_ties, accuracy_without_ties, brier_score

D = torch.linspace(-6.0, 6.0, 49, dtype=torch.float64)


def slope(loss, at: Tensor = D) -> Tensor:
    leaf = at.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


def test_bradley_terry() -> None:
    """Slope -sigma(-D); a share of votes mixes both orders; a margin asks for more."""
    torch.testing.assert_close(slope(bradley_terry), -torch.sigmoid(-D))
    torch.testing.assert_close(bradley_terry(-D, 0.3), bradley_terry(D, 0.7))
    mixed = 0.7 * bradley_terry(D) + 0.3 * bradley_terry(-D)
    torch.testing.assert_close(bradley_terry(D, 0.7), mixed)
    torch.testing.assert_close(bradley_terry(D, margin=0.57), bradley_terry(D - 0.57))
    share = torch.full_like(D, 0.7)
    assert abs(float(D[slope(lambda d: bradley_terry(d, share)).abs().argmin()]) - 0.85) < 0.2
    assert float(origin_penalty(torch.tensor(1.0), torch.tensor(-1.0))) == 0.0
    assert hinge(torch.tensor([0.5, 2.0])).tolist() == [0.5, 0.0]


def test_pick_loss() -> None:
    """0 exactly where the model says what people said, and never below."""
    for share in (0.5, 0.8):
        p = torch.full_like(D, share)
        assert bool((pick_loss(D, p) >= -1e-12).all())
        right = torch.tensor(math.log(share / (1 - share)), dtype=torch.float64)
        assert abs(float(pick_loss(right, p[0]))) < 1e-12
    assert float(bradley_terry(torch.tensor(0.0), 0.5)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("k", [1.5, 5.0, math.e**3])
def test_ties(k: float) -> None:
    """Three probabilities of sum one; at D = 0 a tie has (k - 1) / (k + 1); k -> 1 has no ties."""
    a, b, tie = (log.exp() for log in tie_log_probabilities(D, tie_factor=k))
    torch.testing.assert_close(a + b + tie, torch.ones_like(D), rtol=0, atol=1e-12)
    assert float(tie[len(D) // 2]) == pytest.approx((k - 1) / (k + 1), abs=1e-12)
    tied = torch.zeros_like(D)
    expected = torch.sigmoid(D + math.log(k)) - torch.sigmoid(-D + math.log(k))
    torch.testing.assert_close(
        slope(lambda d: bradley_terry_ties(d, tied, tie_factor=k)), expected, atol=1e-12, rtol=1e-9
    )
    won = torch.ones_like(D)
    torch.testing.assert_close(
        bradley_terry_ties(D, won, tie_factor=1.0 + 1e-12), bradley_terry(D), rtol=0, atol=1e-9
    )
    assert bool(bradley_terry_ties(D, torch.full_like(D, 22.0)).isnan().all())


def test_uncertainty() -> None:
    """-log E sigma lets wrong pairs be unsure; the released loss punishes all variance."""
    z = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = torch.full_like(D, 0.01), torch.full_like(D, 4.0)
    for difference in (-3.0, 0.0, 3.0):
        d, v = torch.tensor(difference, dtype=torch.float64), torch.tensor(4.0).double()
        drawn = torch.sigmoid(d + 2.0 * z)
        assert abs(float(torch.exp(-uncertain_bradley_terry(d, v)) - drawn.mean())) < 0.013
        logs = -torch.nn.functional.logsigmoid(d + 2.0 * z).mean()
        assert abs(float(hpsv3_compat(d, v) - logs)) < 0.02
    wrong = D < -1
    assert bool((uncertain_bradley_terry(D, high) < uncertain_bradley_terry(D, low))[wrong].all())
    assert bool((hpsv3_compat(D, high) > hpsv3_compat(D, low)).all())
    torch.testing.assert_close(uncertain_bradley_terry(D, 0 * D), bradley_terry(D))
    torch.testing.assert_close(hpsv3_compat(D, 0 * D), bradley_terry(D))


def test_win_tie() -> None:
    """Tie loss: minimum at 0, Rao-Kupper without its constant; 2 log 2 at D = m = 0."""
    tied = torch.ones(len(D), dtype=torch.bool)
    loss = win_tie(D, tied)
    assert int(loss.argmin()) == len(D) // 2
    factor = math.e**3
    constant = math.log(factor**2 - 1)
    rao_kupper = bradley_terry_ties(D, torch.zeros_like(D), tie_factor=factor)
    torch.testing.assert_close(loss, rao_kupper + constant)
    torch.testing.assert_close(win_tie(D, ~tied), bradley_terry(D, margin=3.0))
    assert float(win_tie(D, tied, margin=0.0)[len(D) // 2]) == pytest.approx(2 * math.log(2))


def test_win_tie_pairs() -> None:
    """g b wins and g (g - 1) / 2 ties, the winner first; without good samples nothing."""
    good = torch.tensor([True, False, True, True, False])
    pairs, tied = win_tie_pairs(good)
    assert (len(pairs), int(tied.sum())) == (3 * 2 + 3, 3)
    assert bool(good[pairs[:, 0]].all())
    assert torch.equal(good[pairs[:, 1]], tied)
    assert len({tuple(sorted(pair)) for pair in pairs.tolist()}) == 9
    assert len(win_tie_pairs(torch.zeros(4, dtype=torch.bool))[0]) == 0


def test_yes_logit() -> None:
    """Other tokens and a constant change nothing; of one spelling it is the logits' difference."""
    logits = torch.randn(6, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = yes_logit(logits, [3, 4], [7])
    changed = logits + 5.0
    changed[:, 10:] = 30.0
    torch.testing.assert_close(yes_logit(changed, [3, 4], [7]), found)
    torch.testing.assert_close(yes_logit(logits, [3], [7]), logits[:, 3] - logits[:, 7])
    odds = logits.softmax(-1)
    torch.testing.assert_close(found.exp(), (odds[:, 3] + odds[:, 4]) / odds[:, 7])


def test_symmetric_yes_loss() -> None:
    """Swapping the pair is changing the winner; a liking for one place costs nothing."""
    forward, backward = D, D.flip(0) * 0.3 + 1.0
    swapped = symmetric_yes_loss(backward, forward)
    torch.testing.assert_close(
        (-symmetric_yes_loss(forward, backward)).exp() + (-swapped).exp(), torch.ones_like(D)
    )
    liked = symmetric_yes_loss(forward + 2.0, backward + 2.0)
    torch.testing.assert_close(liked, symmetric_yes_loss(forward, backward))
    one_order = bradley_terry(forward)
    assert not torch.allclose(one_order, bradley_terry(forward + 2.0))


def test_masked_mean() -> None:
    """What is masked has no say, NaN included; with nothing left the gradient is 0."""
    losses = torch.tensor([1.0, torch.nan, 3.0], requires_grad=True)
    mean = masked_mean(losses, torch.tensor([True, False, True]))
    mean.backward()
    assert mean.item() == 2.0
    assert losses.grad is not None
    assert losses.grad.tolist() == [0.5, 0.0, 0.5]
    assert masked_mean(losses, torch.zeros(3, dtype=torch.bool)).item() == 0.0


def brute_force(difference: Tensor, label: Tensor) -> float:
    best = 0.0
    for threshold in [-1.0, *difference.abs().tolist()]:
        told = torch.where(difference.abs() <= threshold, 0.0, difference.sign())
        best = max(best, float((told == label).double().mean()))
    return best


def test_accuracy_with_ties() -> None:
    """Equals the search over all thresholds, with equal scores among them."""
    generator = torch.Generator().manual_seed(2)
    for size in (1, 2, 9, 40, 41):
        label = torch.randint(-1, 2, (size,), generator=generator)
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        for difference in (label + noise, (label + noise).round(), noise):
            found = accuracy_with_ties(difference, label)
            assert found.accuracy == pytest.approx(brute_force(difference, label), abs=1e-12)
            told = torch.where(difference.abs() <= found.threshold, 0.0, difference.sign())
            assert float((told == label).double().mean()) == pytest.approx(found.accuracy)


def test_accuracy_without_ties() -> None:
    label = torch.tensor([1, -1, 0, 1, 1])
    difference = torch.tensor([2.0, 1.0, 9.0, 0.0, 0.1])
    assert accuracy_without_ties(difference, label) == (1 + 0 + 0.5 + 1) / 4
    assert math.isnan(accuracy_without_ties(difference, torch.zeros(5)))


def test_brier_score() -> None:
    label = torch.tensor([1, 1, -1, -1])
    assert brier_score(torch.zeros(4), label) == 0.25
    assert brier_score(label * 50.0, label) < 1e-12
    sure_and_wrong = torch.tensor([3.0, 3.0, 3.0, 3.0])
    assert brier_score(sure_and_wrong, label, temperature=10.0) < brier_score(sure_and_wrong, label)
