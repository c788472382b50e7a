"""What each objective is least at: closed forms over small discrete laws."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowalign.noisy_reward.objectives import BradleyTerry, SoftValue

ENDS = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)  # rewards of equally likely ends


def minimum(loss: Callable[[Tensor], Tensor]) -> float:
    """Argument of the least value of a convex function, by Newton's method."""
    h = torch.zeros((), dtype=torch.float64)
    for _ in range(60):
        h = h.requires_grad_()
        (slope,) = torch.autograd.grad(loss(h), h, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, h)
        h = (h - (slope / curvature).clamp(-0.5, 0.5)).detach()
    return float(h)


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_the_soft_value_is_the_log_mean_exp(strength: float) -> None:
    objective = SoftValue(strength=strength)
    valid = torch.ones(3, 1, dtype=torch.bool)
    found = minimum(lambda h: objective(h.expand(3, 1), ENDS[:, None], valid))
    exact = float((strength * ENDS).exp().mean().log()) / strength if strength else 1 / 3
    assert found == pytest.approx(exact, abs=1e-6)
    if strength:  # the mean reward is not it
        assert abs(exact - 1 / 3) > 0.05


def test_the_limit_of_small_strength_is_squared_error() -> None:
    h, valid = torch.full((3, 1), 0.3, dtype=torch.float64), torch.ones(3, 1, dtype=torch.bool)
    small, none = (SoftValue(strength=s)(h, ENDS[:, None], valid) for s in (1e-4, 0.0))
    assert float(small) == pytest.approx(float(none), rel=1e-3)


def test_missing_rewards_do_not_count() -> None:
    """A masked entry may hold anything, NaN as well, in values and gradients."""
    h = torch.tensor([[0.1, 0.4], [0.2, -0.3]], requires_grad=True)
    r = torch.tensor([[1.0, torch.nan], [0.0, 2.0]])
    valid = r.isfinite()
    for objective in (SoftValue(strength=2.0), BradleyTerry(ties=1.0), BradleyTerry(ties=5.0)):
        (slope,) = torch.autograd.grad(objective(h, r, valid), h)
        assert bool(slope.isfinite().all()) and float(slope[0, 1]) == 0.0
    (slope,) = torch.autograd.grad(SoftValue(strength=2.0)(h, r, torch.ones_like(valid)), h)
    assert not bool(slope.isfinite().all())


def test_preferences_of_pairs() -> None:
    """log 2 where nothing is known, the same after a shift, -log sigmoid of the difference."""
    objective = BradleyTerry(ties=1.0)
    r, valid = torch.tensor([[1.0], [0.0]]), torch.ones(2, 1, dtype=torch.bool)
    h = torch.tensor([[0.7], [-0.2]])
    assert float(objective(0 * h, r, valid)) == pytest.approx(math.log(2.0))
    assert float(objective(h + 3.0, r, valid)) == pytest.approx(float(objective(h, r, valid)))
    assert float(objective(h, r, valid)) == pytest.approx(math.log1p(math.exp(-0.9)))
    assert float(objective(h, r.flip(0), valid)) == pytest.approx(math.log1p(math.exp(0.9)))


@pytest.mark.parametrize("ties", [2.0, 5.0])
@pytest.mark.parametrize("delta", [-1.3, 0.0, 2.0])
def test_the_three_outcomes_have_probability_one(ties: float, delta: float) -> None:
    """Rao and Kupper: better, worse and tie, each exp(-loss)."""
    h, valid = torch.tensor([[delta], [0.0]], dtype=torch.float64), torch.ones(2, 1).bool()
    outcomes = [torch.tensor([[a], [0.0]], dtype=torch.float64) for a in (1.0, -1.0, 0.0)]

    def total(objective: BradleyTerry) -> float:
        return sum(math.exp(-float(objective(h, r, valid))) for r in outcomes)

    assert total(BradleyTerry(ties=ties)) == pytest.approx(1.0, abs=1e-12)
    # Without ties the third outcome is left out: its loss is 0, so the sum is 2.
    assert total(BradleyTerry(ties=1.0)) == pytest.approx(2.0, abs=1e-12)
