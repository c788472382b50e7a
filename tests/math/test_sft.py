"""SFT and the regression under it: its fixed point, its choice of samples, its batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowalign.algorithms.forward import noised, output_error
from flowalign.algorithms.minibatches import group_size, split_whole_groups
from flowalign.algorithms.regression import RegressionBatch, unit_mean
from flowalign.algorithms.sft import SFT, best_of_group
from flowalign.config.regression import SFTConfig
from flowalign.errors import ConfigError
from flowalign.paths import RectifiedFlow, diffuse
from flowalign.protocols import Algorithm, Path, Policy
from flowalign.types import Cond, Needs, Rollout
from tests.math.gaussian_data import GaussianData
from tests.math.test_nft import IDS, flat_gradient, key, rollout_of
from tests.math.test_paths import PATHS
from tests.tiny_policy import TinyPolicy, parameters, scored, tiny_policy

DATA = GaussianData()


def sft(path: Path | None = None, **settings: Any) -> SFT:
    return SFT(SFTConfig.model_validate({"name": "sft", **settings}), path or RectifiedFlow())


def normal_quadrature(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights (n,) with sum_i w_i f(z_i) = E f(N(0, 1)) for polynomials f."""
    step = torch.arange(1, nodes, dtype=torch.float64).sqrt()
    z, vectors = torch.linalg.eigh(torch.diag(step, 1) + torch.diag(step, -1))
    return z, vectors[0].square()


def exact_batch(data: GaussianData, t: Tensor, weight: Any = torch.ones_like) -> RegressionBatch:
    """All of (x0, eps) at once, so that the batch's mean loss is the expectation.

    `weight(x0)` is the credit of a sample.
    """
    z, w = normal_quadrature(40)
    x0 = (data.mean + data.variance**0.5 * z).repeat_interleave(40)
    eps, credit = z.repeat(40), (w[:, None] * w).flatten() * 40 * 40
    return RegressionBatch(
        x0=x0[:, None],
        eps=eps[:, None],
        t=t,
        credit=credit * weight(x0),
        baseline=torch.zeros(1600, dtype=torch.float64),
        blank=torch.zeros(1600, dtype=torch.bool),
        cond=Cond(batched={"shift": torch.zeros(1600)}, shared={}, size=1600),
        weight=1.0,
    )


def optimal_policy(path: Path, data: GaussianData, t: Tensor, off: float = 0.0) -> TinyPolicy:
    """The exact predictor of Gaussian data at level t: it is linear in x."""
    policy = tiny_policy(path=path, shape=(1,), dtype=torch.float64)
    probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    at_zero, at_one = (data.prediction(path, probe, t) / (1.0 + t))[:, 0]
    with torch.no_grad():
        policy.net.weight.fill_(float(at_one - at_zero) + off)
        policy.net.bias.fill_(float(at_zero))
    return policy


def expected_gradient(method: Algorithm, policy: Policy, batch: RegressionBatch) -> Tensor:
    assert isinstance(policy, TinyPolicy)
    return flat_gradient(method.loss(policy, batch)[0], policy)


@pytest.mark.parametrize("path", PATHS, ids=IDS)
@pytest.mark.parametrize("value", [0.1, 0.5, 0.9])
def test_the_posterior_mean_is_the_fixed_point(path: Path, value: float) -> None:
    """E[gradient] = 0 at E[target | x_t]; the expectation is exact, by quadrature."""
    t = torch.tensor(value, dtype=torch.float64)
    method, batch = sft(path), exact_batch(DATA, t)
    at_rest = expected_gradient(method, optimal_policy(path, DATA, t), batch)
    assert float(at_rest.abs().max()) < 1e-10
    # Negative control: a slope 1 % off.
    moved = expected_gradient(method, optimal_policy(path, DATA, t, off=0.01), batch)
    assert float(moved.abs().max()) > 1e-4


def test_best_of_each_group() -> None:
    score = torch.tensor([0.0, 5.0, 2.0, 9.0, 1.0, 3.0])
    group = torch.tensor([7, 7, 7, 2, 2, 2])
    valid = torch.tensor([True, True, True, False, True, True])
    assert best_of_group(score, valid, group, 1).tolist() == [0, 1, 0, 0, 0, 1]
    assert best_of_group(score, valid, group, 2).tolist() == [0, 1, 1, 0, 1, 1]
    assert best_of_group(score, valid, group, 9).tolist() == valid.tolist()
    # Ties are broken once: a group without spread gives as many samples as any other.
    assert best_of_group(torch.ones(6), valid, group, 1).tolist() == [1, 0, 0, 0, 1, 0]


def test_credit_is_equal_for_the_chosen_and_has_mean_one() -> None:
    group = torch.arange(4).repeat_interleave(4)
    reward = torch.randn(16, generator=key())
    good = torch.ones(16, dtype=torch.bool)
    good[reward.argmax()] = False  # the best of all failed to be scored
    values = torch.where(good, reward, torch.nan)
    data = scored({"a": values}, group, valid={"a": good})
    credit = sft(best=1).credit(data, {})
    assert torch.equal(credit != 0, best_of_group(reward, good, group, 1))
    assert float(credit.sum()) == 16.0
    assert credit.unique().tolist() == [0.0, 4.0]
    every = sft(best=None).credit(data, {})
    assert torch.equal(every != 0, good)
    torch.testing.assert_close(every.sum(), torch.tensor(16.0))


def test_a_group_of_one_is_its_own_best() -> None:
    """Data with one sample a prompt are all learned, whatever their scores are."""
    score = {"a": torch.tensor([1.0, 1.0, -3.0, 0.0, 8.0])}
    for best in (None, 1):
        assert sft(best=best).credit(scored(score, torch.arange(5)), {}).tolist() == [1.0] * 5


def test_what_does_not_count_does_not_dilute() -> None:
    weight, counts = torch.tensor([2.0, 4.0, 9.0]), torch.tensor([True, True, False])
    errors = torch.tensor([1.0, 10.0, 100.0])
    assert float((unit_mean(weight, counts) * errors).mean()) == pytest.approx((2 + 40) / 2)
    assert unit_mean(weight, torch.zeros(3, dtype=torch.bool)).tolist() == [0.0, 0.0, 0.0]


def test_best_of_group_is_sft_on_the_best() -> None:
    """The step's loss is the mean error of the best samples alone, which alone are predicted."""
    policy = tiny_policy(dtype=torch.float64)
    rollout = rollout_of(policy)
    reward = torch.randn(16, generator=key(3))
    method = sft(levels_per_sample=2)
    credit = method.credit(scored({"a": reward}, rollout.group), {})
    (batches,) = method.batches(rollout, credit, key(), batch_size=16, total=16)
    best = torch.nonzero(credit).flatten()
    assert len(batches) == 2
    total, expected = torch.zeros(()), torch.zeros(())
    for batch in batches:
        assert torch.equal(batch.x0, rollout.trajectory.x[best, -1])
        total = total + method.loss(policy, batch)[0] * batch.weight
        x = noised(RectifiedFlow(), batch.x0, batch.eps, batch.t)
        pred = policy.predict(x, batch.t, batch.cond)
        errors = output_error(RectifiedFlow(), pred, batch.x0, batch.eps, batch.t)
        expected = expected + errors.mean() / 2
    torch.testing.assert_close(total, expected)


def updates_of(method: Algorithm, rollout: Rollout, credit: Tensor, **settings: Any) -> Any:
    options = {"batch_size": 16, "total": 16, "seed": 0, **settings}
    generator = key(options.pop("seed"))
    return list(method.batches(rollout, credit, generator, **options))


def summed_gradient(method: Algorithm, policy: TinyPolicy, update: Any) -> Tensor:
    parts = [flat_gradient(method.loss(policy, b)[0] * b.weight, policy) for b in update]
    empty = torch.zeros(sum(p.numel() for p in parameters(policy)))
    return torch.stack([empty, *parts]).sum(0)


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("density", ["uniform", "logit_normal", "mode", "rollout"])
def test_batches_and_ranks_do_not_change_the_gradient(updates: int, density: str) -> None:
    policy = tiny_policy()
    method = sft(
        updates_per_rollout=updates,
        levels={"density": density},
        prompt_dropout=0.4,
        levels_per_sample=3,
    )
    credit = torch.rand(16, generator=key(5))
    credit[[2, 7, 8]] = 0.0

    def gradient(groups: tuple[int, ...], rows: slice, batch_size: int) -> Tensor:
        part = rollout_of(policy, groups=groups)
        found = updates_of(method, part, credit[rows], batch_size=batch_size)
        assert len(found) == updates
        return torch.cat([summed_gradient(method, policy, update) for update in found])

    whole = gradient((0, 1, 2, 3), slice(0, 16), 64)
    assert float(whole.norm()) > 1e-3
    torch.testing.assert_close(gradient((0, 1, 2, 3), slice(0, 16), 3), whole, rtol=1e-4, atol=1e-6)
    ranks = gradient((0,), slice(0, 4), 64) + gradient((1, 2, 3), slice(4, 16), 2)
    torch.testing.assert_close(ranks, whole, rtol=1e-4, atol=1e-6)
    # Negative control: one rank's share alone is another gradient.
    assert not torch.allclose(gradient((1, 2, 3), slice(4, 16), 2), whole, rtol=1e-2)


def test_updates_share_the_groups() -> None:
    """Disjoint, together all, the same on any ranks; a step's credit is spent once."""
    whole = split_whole_groups(torch.arange(5).repeat_interleave(3), 15, 2, key())
    assert sorted(torch.cat([rows for rows, _ in whole]).tolist()) == list(range(15))
    assert sorted(share for _, share in whole) == [0.4, 0.6]
    first = split_whole_groups(torch.tensor([0, 0, 0, 1, 1, 1]), 15, 2, key())
    second = split_whole_groups(torch.tensor([2, 3, 4]).repeat_interleave(3), 15, 2, key())
    for k in range(2):
        assert torch.cat([first[k][0], second[k][0] + 6]).tolist() == whole[k][0].tolist()
        assert first[k][1] == second[k][1] == whole[k][1]
    orders = {
        tuple(split_whole_groups(torch.arange(5), 5, 2, key(seed))[0][0].tolist())
        for seed in range(9)
    }
    assert len(orders) > 3
    with pytest.raises(ConfigError, match="6 updates cannot share 5 groups"):
        split_whole_groups(torch.arange(5), 5, 6, key())
    with pytest.raises(ConfigError, match="groups of 1 to 2 samples"):
        group_size(torch.tensor([0, 0, 1]), 3)


def test_each_sample_sees_different_levels_and_noise() -> None:
    policy = tiny_policy()
    rollout, credit = rollout_of(policy), torch.ones(16)
    method = sft(updates_per_rollout=2, levels_per_sample=5)
    updates = updates_of(method, rollout, credit)
    for update in updates:
        levels = sorted(float(batch.t) for batch in update)
        assert all(i / 5 <= t <= (i + 1) / 5 for i, t in enumerate(levels))
        assert [len(batch.x0) for batch in update] == [8] * 5
    eps = torch.cat([batch.eps for update in updates for batch in update])
    assert len(eps) == 80 == len(torch.unique(eps, dim=0))
    again = updates_of(method, rollout, credit, seed=1)
    assert not torch.equal(again[0][0].eps, updates[0][0].eps)
    assert {float(b.t) for b in again[0]}.isdisjoint({float(b.t) for b in updates[0]})


@pytest.mark.parametrize("path", [PATHS[0], PATHS[1]], ids=IDS[:2])
def test_the_empty_prompt_is_what_the_network_sees(path: Path) -> None:
    policy = tiny_policy(path=path)
    rollout = rollout_of(policy)
    method = sft(path, prompt_dropout=0.5)
    (update,) = updates_of(method, rollout, torch.ones(16))
    batch = update[0]
    assert 0 < int(batch.blank.sum()) < 16
    shift = torch.where(batch.blank, 0.0, rollout.trajectory.cond.batched["shift"])  # type: ignore[arg-type]
    by_hand = replace(
        batch,
        blank=torch.zeros(16, dtype=torch.bool),
        cond=Cond(batched={"shift": shift}, shared={}, size=16),
    )
    assert torch.equal(method.loss(policy, batch)[0], method.loss(policy, by_hand)[0])
    told = replace(batch, blank=torch.zeros(16, dtype=torch.bool))
    assert not torch.equal(method.loss(policy, batch)[0], method.loss(policy, told)[0])


def test_level_weights_scale_the_loss() -> None:
    policy = tiny_policy()
    (update,) = updates_of(sft(), rollout_of(policy), torch.ones(16))
    for batch in update:
        plain = sft().loss(policy, batch)[0]
        scaled = sft(weight="inverse_square").loss(policy, batch)[0]
        torch.testing.assert_close(scaled, plain * float(batch.t) ** -2)
    with pytest.raises(ConfigError, match="for rectified flows"):
        sft(PATHS[1], weight="cosmap")


def test_one_pass_a_batch_and_no_more() -> None:
    policy = tiny_policy()
    (update,) = updates_of(sft(), rollout_of(policy), torch.ones(16))
    policy.passes.clear()
    _, metrics = sft().loss(policy, update[0])
    assert dict(policy.passes) == {"current": 1}
    assert sft().needs == Needs()
    batch = update[0]
    x = diffuse(RectifiedFlow(), batch.x0, batch.eps, batch.t)
    error = (policy.predict(x, batch.t, batch.cond) - (batch.eps - batch.x0)).square().mean()
    torch.testing.assert_close(metrics["error"], error.detach())
