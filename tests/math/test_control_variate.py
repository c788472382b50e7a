"""The control variate of regression: the same expected gradient, less noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowalign.algorithms.regression import RegressionBatch, group_baseline
from flowalign.config.load import config_from_mapping
from flowalign.errors import ConfigError
from flowalign.protocols import Path
from flowalign.types import Needs
from tests.math.gaussian_data import GaussianData
from tests.math.test_nft import IDS, key, rollout_of
from tests.math.test_paths import PATHS
from tests.math.test_rwr import rwr
from tests.math.test_sft import exact_batch, expected_gradient, optimal_policy, sft
from tests.tiny_policy import TinyPolicy, moved_by, scored, tiny_policy

DATA = GaussianData()
BETA = 2.0


def tilt(x0: Tensor) -> Tensor:
    """exp(x0 / beta), of mean 1 over the data."""
    log_mean = DATA.mean / BETA + 0.5 * DATA.variance / BETA**2
    return (x0 / BETA - log_mean).exp()


def batch_at(t: Tensor, baseline: float) -> RegressionBatch:
    """Weights tilt(x0), and the quadrature's own weights with the baseline."""
    weighted, plain = exact_batch(DATA, t, tilt), exact_batch(DATA, t)
    return replace(weighted, baseline=baseline * plain.credit)


def policy_at(path: Path, t: Tensor, *, old_slope: float = 0.0) -> TinyPolicy:
    """Drawn from by the exact predictor (old), and moved since then."""
    policy = optimal_policy(path, DATA, t)
    state = policy.net.state_dict()
    policy.frozen["old"] = {
        "net.weight": state["weight"] + old_slope,
        "net.bias": state["bias"].clone(),
    }
    moved_by(policy, 0.03)
    return policy


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_the_expected_gradient_is_that_of_the_regression(path: Path) -> None:
    """E[(w - b)(v - target) + b (v - v_old)] = E[w (v - target)] where v_old = E[target | x_t]."""
    t = torch.tensor(0.6, dtype=torch.float64)
    plain = expected_gradient(rwr(path), policy_at(path, t), batch_at(t, 0.0))
    reduced = expected_gradient(
        rwr(path, control_variate=True), policy_at(path, t), batch_at(t, 1.0)
    )
    torch.testing.assert_close(reduced, plain, atol=1e-9, rtol=1e-9)
    # Negative control: a policy that is not the mean of its targets.
    other = policy_at(path, t, old_slope=0.05)
    biased = expected_gradient(rwr(path, control_variate=True), other, batch_at(t, 1.0))
    assert float((biased - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("path", PATHS, ids=IDS)
def test_its_noise_is_smaller(path: Path) -> None:
    """Variance of single samples' gradients, exactly, at weights exp(x0 / 2)."""
    t = torch.tensor(0.6, dtype=torch.float64)

    def second_moment(reduced: bool) -> float:
        policy, weighted = optimal_policy(path, DATA, t), exact_batch(DATA, t, tilt)
        chance = exact_batch(DATA, t).credit / 1600
        x = path.alpha(t) * weighted.x0 + path.sigma(t) * weighted.eps
        miss = policy.predict(x, t, weighted.cond).detach() - path.target(
            weighted.x0, weighted.eps, t
        )
        weight = tilt(weighted.x0) - (1.0 if reduced else 0.0)
        return float((chance[:, None] * (2 * weight * miss).square()).sum())

    assert second_moment(True) < 0.5 * second_moment(False)


def test_without_it_the_old_policy_is_not_asked() -> None:
    policy = tiny_policy()
    rollout = rollout_of(policy)
    good = torch.ones(16, dtype=torch.bool)
    good[3] = False
    values = torch.where(good, torch.randn(16, generator=key(3)), torch.nan)
    rewards = scored({"a": values}, rollout.group, valid={"a": good})
    rollout = replace(rollout, valid=good)
    for reduced, rows in ((False, 4), (True, 15)):
        method = sft(control_variate=reduced, best=1, levels_per_sample=1)
        assert method.needs == Needs(old=reduced)
        credit = method.credit(rewards, {})
        (batches,) = method.batches(rollout, credit, key(), batch_size=16, total=16)
        assert sum(batch.cond.size for batch in batches) == rows
        policy.passes.clear()
        for batch in batches:
            method.loss(policy, batch)
        assert policy.passes["old"] == (len(batches) if reduced else 0)


def test_the_baseline_is_the_mean_of_the_groups_valid_members() -> None:
    credit = torch.tensor([4.0, 0.0, 0.0, 3.0, 1.0, 0.0])
    valid = torch.tensor([True, True, False, True, True, False])
    group = torch.tensor([5, 5, 5, 1, 1, 9])
    assert group_baseline(credit, valid, group).tolist() == [2.0, 2.0, 0.0, 2.0, 2.0, 0.0]


def test_data_have_no_old_policy() -> None:
    mapping = {
        "output": "run",
        "data": {"path": "pairs.jsonl"},
        "algorithm": {"name": "sft", "control_variate": True},
    }
    with pytest.raises(ConfigError, match=r"control_variate.*drawn by others"):
        config_from_mapping(mapping)
    mapping["algorithm"] = {"name": "sft"}
    config_from_mapping(mapping)
