"""Which kernels keep the marginal law, by the exact mean and variance on Gaussian data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowalign.config.sampling import SamplerConfig
from flowalign.levels import diffusion_levels, flow_levels
from flowalign.paths import RectifiedFlow, VariancePreserving
from flowalign.protocols import Path, Sampler
from flowalign.samplers import CPS, DDIM, ODE, Dance, FlowSDE
from flowalign.schedules import noise_levels
from tests.math.gaussian_data import GaussianData, laws

DATA = GaussianData()
SCHEDULES = {
    "constant": {"schedule": "constant"},
    "linear": {"schedule": "linear"},
    "cosine": {"schedule": "cosine"},
    "exponential": {"schedule": "exponential"},
    "first_k": {"schedule": "first_k", "k": 500},
    "hicogen": {"schedule": "hicogen", "eta_min": 0.2},
    "window": {"schedule": "window", "size": 400, "start": 300, "move": "fixed"},
}


def worst_error(sampler: Sampler, path: Path, t: Tensor, noise: Tensor) -> float:
    """Largest relative error of a state's variance, over the whole trajectory."""
    errors = []
    for (mean, variance), level in zip(laws(DATA, sampler, path, t, noise), t, strict=True):
        true_mean, true_variance = DATA.marginal(path, level)
        # Means are compared in units of the true std.
        errors.append(abs(mean - true_mean) / true_variance**0.5)
        errors.append(abs(variance / true_variance - 1.0))
    return max(errors)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("level", [0.5, 1.0])
def test_ddim_keeps_the_marginals_for_every_schedule(schedule: str, level: float) -> None:
    t = flow_levels(1000)
    config = SamplerConfig.model_validate(
        {
            "num_steps": 1000,
            "noise_level": level,
            "noise": SCHEDULES[schedule],
            "normalise_budget": False,
        }
    )
    noise = noise_levels(config, t, training_step=0, seed=0)
    assert worst_error(DDIM(), RectifiedFlow(), t, noise) < 0.01


def vp_error(num_train_timesteps: int, eta: float) -> float:
    """Worst error over all steps of Stable Diffusion's schedule with its betas refined."""
    n = num_train_timesteps
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, n, dtype=torch.float64).square() * 1000 / n
    path = VariancePreserving(alphas_cumprod=(1.0 - betas).cumprod(0))
    t = diffusion_levels(list(range(n - 1, -1, -1)), n)
    return worst_error(DDIM(), path, t, torch.full((n,), eta, dtype=torch.float64))


@pytest.mark.parametrize(("eta", "bound"), [(0.0, 0.006), (0.5, 0.007), (1.0, 0.011)])
def test_ddim_keeps_the_marginals_on_a_variance_preserving_path(eta: float, bound: float) -> None:
    """To first order in the table's own step, which is coarse where the noise is largest."""
    coarse, fine = vp_error(1000, eta), vp_error(2000, eta)
    assert coarse < bound
    assert coarse / fine == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("level", [0.5, 0.8, 1.0])
def test_cps_does_not(level: float) -> None:
    """Negative control of the test above: no number of steps brings CPS to the marginals."""
    for steps in (500, 2000):
        noise = torch.full((steps,), level, dtype=torch.float64)
        assert worst_error(CPS(), RectifiedFlow(), flow_levels(steps), noise) > 0.1


def test_flow_sde_misses_the_first_states_for_any_number_of_steps() -> None:
    """Its patch at sigma = 1 makes the variance there 1 + a^4 / 4."""
    for steps in (100, 1000):
        noise = torch.full((steps,), 1.0, dtype=torch.float64)
        t = flow_levels(steps)
        first = laws(GaussianData(mean=0.0, variance=1.0), FlowSDE(), RectifiedFlow(), t, noise)[1]
        assert first[1] == pytest.approx(1.25, rel=3.0 / steps)


# Final variance over the true one on N(1.5, 0.64), grid without shift, computed apart from this
# code by a mean and variance recursion; three digits.
FINAL = {
    ("ode", 0.0): (0.770, 0.901, 0.974, 0.997),
    ("flow_sde", 0.7): (0.933, 0.985, 1.006, 1.005),
    ("flow_sde", 1.0): (0.988, 1.000, 1.003, 1.001),
    ("dance", 0.3): (0.789, 0.909, 0.977, 0.998),
    ("ddim", 0.5): (0.745, 0.884, 0.969, 0.997),
    ("ddim", 1.0): (0.637, 0.820, 0.948, 0.995),
    ("cps", 0.5): (0.670, 0.770, 0.827, 0.849),
    ("cps", 0.8): (0.517, 0.587, 0.631, 0.650),
    ("cps", 1.0): (0.396, 0.446, 0.480, 0.496),
}
KERNELS: dict[str, Sampler] = {
    "ode": ODE(),
    "flow_sde": FlowSDE(),
    "dance": Dance(),
    "ddim": DDIM(),
    "cps": CPS(),
}


@pytest.mark.parametrize(("name", "level"), FINAL)
def test_final_variance_is_the_known_one(name: str, level: float) -> None:
    for steps, expected in zip((10, 25, 100, 1000), FINAL[name, level], strict=True):
        noise = torch.full((steps,), level, dtype=torch.float64)
        final = laws(DATA, KERNELS[name], RectifiedFlow(), flow_levels(steps), noise)[-1]
        assert final[1] / DATA.variance == pytest.approx(expected, abs=6e-4)


CONDITIONAL = ("first_k", "cosine", "constant")


def kept_freedom(noise: Tensor, t: Tensor, variance: float) -> float:
    """Var(x0 | x_T) / Var(x0): how much of the picture the rollout's noise decides."""
    data = GaussianData(mean=0.0, variance=variance)
    final = laws(data, DDIM(), RectifiedFlow(), t, noise, start=(0.3, 0.0))[-1]
    return final[1] / variance


@pytest.mark.parametrize("variance", [0.09, 1.0, 9.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_early_noise_decides_more(variance: float, steps: int) -> None:
    """At one budget: first-k > cosine > constant > the cosine turned round.

    Not a matter of taste: on Gaussian data Var(x0 | x_T) grows with the noise weighted by how
    much of the state is not yet decided (methods that decay the noise rest on this).
    """
    t = flow_levels(steps)
    shapes = {
        # The fewest steps that can spend the budget with eta <= 1: the linear optimum.
        "first_k": {"schedule": "first_k", "k": math.ceil(0.25 * (steps - 1))},
        "cosine": {"schedule": "cosine"},
        "constant": {"schedule": "constant"},
    }
    freedom, spent = {}, {}
    weight = (t[:-1] - t[1:])[:-1]
    for name in CONDITIONAL:
        config = SamplerConfig.model_validate(
            {"num_steps": steps, "noise_level": 0.5, "noise": shapes[name]}
        )
        noise = noise_levels(config, t, training_step=0, seed=0)
        freedom[name] = kept_freedom(noise, t, variance)
        spent[name] = float((noise[:-1].square() * weight).sum())
        if name == "cosine":
            turned = torch.cat([noise[:-1].flip(0), noise[-1:]])
            freedom["reverse"] = kept_freedom(turned, t, variance)
    assert freedom["first_k"] > freedom["cosine"] > freedom["constant"] > freedom["reverse"]
    assert max(spent.values()) - min(spent.values()) < 1e-9
    # Negative control: without noise nothing is decided after the start.
    assert kept_freedom(torch.zeros(steps, dtype=torch.float64), t, variance) == 0.0
