"""Twisted particles: unbiased for every reward, near the truth with four of them, and re-indexed.

The base chain is DDIM with noise on Gaussian data, which is Gaussian itself; its own law is what
is tilted. Standard errors are those of independent groups; 4.5 of them are passed by chance once
in 150,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowalign.gaussian import Gaussian
from flowalign.steering import chain as chain_module
from flowalign.steering.feynman_kac import Outcome, feynman_kac
from flowalign.steering.gradient_cases import twisted
from flowalign.steering.gradient_chains import Shifted, TwistedChain
from flowalign.steering.weights import log_evidence
from tests.math.gaussian_data import laws
from tests.steering.gaussian_pipeline import DATA, parts
from tests.steering.test_guidance import drawn
from tests.steering.toys import evidence, expectation, linear, quadratic, steering

LIMIT, STEPS, LAMBDA, PARTICLES = 4.5, 8, 2.0, 4


def run(
    reward: Callable[[Tensor], Tensor] = linear,
    *,
    gradient: bool = True,
    groups: int = 250,
    tempering: float | None = None,
    seed: int = 0,
) -> tuple[Outcome, Tensor]:
    """Outcome, and the ends (G, K)."""
    chain, judge = parts(
        reward, groups=groups, particles=PARTICLES, num_steps=STEPS, noise=1.0, seed=seed
    )
    settings = steering(
        strength=LAMBDA,
        num_steps=STEPS,
        looks=8,
        ess_threshold=1.0 if tempering else 0.5,
        tempering=tempering,
    )
    settings = replace(settings, looks=tuple(range(1, STEPS - 1)))
    walk = twisted if gradient else feynman_kac
    with torch.no_grad():
        outcome = walk(chain, judge, settings, groups=groups, particles=PARTICLES)
    ends = torch.stack([sample.media[0, 0, 0] for sample in outcome.finish.samples])
    return outcome, ends.double().view(groups, PARTICLES)


def base_law() -> tuple[float, float]:
    """Mean and variance of the chain's ends."""
    chain, _ = parts(linear, groups=1, particles=1, num_steps=STEPS, noise=1.0)
    plan, path = chain.plan, chain.generator.path
    return laws(DATA, plan.sampler, path, plan.t, plan.noise, start=(0.0, 1.0))[-1]


def truth(reward: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """log Z and the tilted mean of the chain's law, by quadrature."""
    mean, variance = base_law()
    x = torch.linspace(mean - 9, mean + 9, 20001, dtype=torch.float64)
    log_density = -0.5 * (x - mean).square() / variance + LAMBDA * reward(x)
    weight = torch.softmax(log_density, dim=0)
    step = float(x[1] - x[0])
    log_z = float(torch.logsumexp(log_density, 0)) + math.log(step)
    return log_z - 0.5 * math.log(2 * math.pi * variance), float((weight * x).sum())


def self_normalised(outcome: Outcome, ends: Tensor) -> float:
    """What one population tells of the tilted mean, on average."""
    return float((torch.softmax(outcome.weights.log_weight, dim=1) * ends).sum(dim=1).mean())


@pytest.mark.parametrize("reward", [linear, quadratic])
@pytest.mark.parametrize("tempering", [None, 0.6], ids=["tds", "das"])
def test_log_z_and_the_mean_are_unbiased(
    reward: Callable[[Tensor], Tensor], tempering: float | None
) -> None:
    outcome, ends = run(reward, tempering=tempering)
    log_z, mean = truth(reward)
    assert evidence(outcome, log_z).off(1.0) < LIMIT
    assert expectation(outcome, ends).off(mean) < LIMIT


def test_without_the_ratio_of_the_laws_they_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "log_ratio", lambda base, law, x: torch.zeros(len(x)))
    outcome, ends = run()
    log_z, mean = truth(linear)
    assert evidence(outcome, log_z).off(1.0) > LIMIT
    assert expectation(outcome, ends).off(mean) > LIMIT


def test_gradients_of_other_particles_spoil_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """DAS's defect: after resampling the gradient stays where it was. The weights know the law
    that was drawn from, so nothing is biased, but the particles are pushed at random."""
    spread = [float(log_evidence(run(quadratic)[0].weights).std())]
    advance = TwistedChain.advance

    def stale(self: TwistedChain, x: Tensor, pred: Tensor, step: int, rows: Tensor):
        if step in self.steps:
            output, gradient = pred.unbind(dim=1)
            pred = torch.stack([output, gradient.roll(1, 0)], dim=1)
        return advance(self, x, pred, step, rows)

    monkeypatch.setattr(TwistedChain, "advance", stale)
    spread.append(float(log_evidence(run(quadratic)[0].weights).std()))
    assert spread[1] > 1.3 * spread[0]


def test_four_twisted_particles_do_what_many_plain_ones_do() -> None:
    """x0hat is linear in x, so the twist is the soft value but for a constant of each level."""
    plain, plain_ends = run(gradient=False)
    found, ends = run()
    _, mean = truth(linear)
    assert abs(self_normalised(found, ends) - mean) < 0.16
    assert self_normalised(plain, plain_ends) < mean - 0.25
    noise = [float(log_evidence(each.weights).std()) for each in (plain, found)]
    assert noise[1] < 0.5 * noise[0]


def test_the_shifted_law_is_the_samplers_moved_by_its_variance() -> None:
    base = Gaussian(mean=torch.zeros(2, 3), std=torch.tensor([0.5, 2.0], dtype=torch.float64))
    law = Shifted(gradient=torch.ones(2, 3))(base, None)  # type: ignore[arg-type]
    assert law.mean[:, 0].tolist() == [0.25, 4.0]
    assert torch.equal(law.std, base.std)


def test_a_job_of_twisted_particles() -> None:
    """Costs: 3 evaluations for a twisted step, one for the first and the last."""
    method = {"name": "fk", "particles": 3, "proposal": "gradient", "looks": "every_step"}
    found = drawn({**method, "strength": 20.0})
    assert found.costs.network_evaluations == 5 * 3 * (6 + 2 * 4)
    without = drawn({**method, "strength": 20.0, "proposal": "sampler"})
    assert float((found.scores["red"] - without.scores["red"]).mean()) > 0
