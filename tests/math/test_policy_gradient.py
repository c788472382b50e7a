"""The score-function gradient of a rollout equals the reparametrised one, step by step.

Data with one element, a linear network with a free shift theta_i at each step, reward J = x_T: then
dJ/dtheta_i is a number that both estimators must find.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowalign.levels import flow_levels
from flowalign.paths import RectifiedFlow
from flowalign.protocols import Sampler
from flowalign.samplers import CPS, DDIM, Dance, FlowSDE
from tests.math.gaussian_data import GaussianData

PATH, DATA, T = RectifiedFlow(), GaussianData(), flow_levels(6, 2.0)
KERNELS: list[Sampler] = [DDIM(), FlowSDE(), CPS(), Dance()]
COUNT = 40_000


def rollout(
    sampler: Sampler, noise: Tensor, theta: Tensor, *, detach: bool
) -> tuple[Tensor, list[Tensor]]:
    """Final states (n, 1) and the log-probs of the stochastic steps; `detach` cuts the chain
    between steps as a stored trajectory does."""
    key = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        half = torch.randn(COUNT // 2, 1, generator=key, dtype=torch.float64)
        return torch.cat([half, -half])

    x, log_probs = draw(), []
    for i in range(len(noise)):
        pred = DATA.prediction(PATH, x, T[i]) + theta[i]
        law = sampler.step(PATH, x, pred, T[i], T[i + 1], noise[i])
        x = law.sample(draw()) if noise[i] > 0 else law.mean
        x = x.detach() if detach else x
        if noise[i] > 0:
            log_probs.append(law.log_prob(x))
    return x, log_probs


def reparametrised(sampler: Sampler, noise: Tensor) -> Tensor:
    theta = torch.zeros(len(noise), dtype=torch.float64, requires_grad=True)
    x, _ = rollout(sampler, noise, theta, detach=False)
    (gradient,) = torch.autograd.grad(x.mean(), theta)
    return gradient


def reinforce(sampler: Sampler, noise: Tensor) -> Tensor:
    """mean over samples of (J - mean J) sum_i log_prob_i, differentiated."""
    theta = torch.zeros(len(noise), dtype=torch.float64, requires_grad=True)
    x, log_probs = rollout(sampler, noise, theta, detach=True)
    credit = (x - x.mean()).flatten()
    total = sum(((credit * value).mean() for value in log_probs), torch.zeros(()))
    (gradient,) = torch.autograd.grad(total, theta)
    return gradient


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: type(k).__name__)
def test_reinforce_is_the_reparametrised_gradient_per_step(kernel: Sampler) -> None:
    noise = torch.tensor([0.6, 0.6, 0.6, 0.6, 0.6, 0.0], dtype=torch.float64)
    exact, estimate = reparametrised(kernel, noise), reinforce(kernel, noise)
    assert bool((exact < 0).all())
    # Standard error: std(J) |dm/dtheta| / (s sqrt(n)) = 0.8 * 0.2 / (0.2 * 200) = 0.004.
    torch.testing.assert_close(estimate[:5], exact[:5], rtol=0, atol=0.016)
    error = (estimate[:5] - exact[:5]).abs()
    # The deterministic last step moves J, and its estimate cannot see that.
    assert estimate[5] == 0
    assert exact[5] != 0
    # Negative control: the step's gradients shifted by one do not fit.
    assert float((estimate[:4] - exact[1:5]).abs().max()) > float(error.max())


def test_a_window_estimates_its_own_steps_only() -> None:
    """Mixed ODE-SDE sampling: partial derivatives of the window, zero elsewhere."""
    noise = torch.tensor([0.0, 0.0, 0.7, 0.7, 0.0, 0.0], dtype=torch.float64)
    exact, estimate = reparametrised(DDIM(), noise), reinforce(DDIM(), noise)
    torch.testing.assert_close(estimate[2:4], exact[2:4], rtol=0, atol=0.016)
    assert estimate[[0, 1, 4, 5]].tolist() == [0.0] * 4
    assert float(exact[[0, 1, 4, 5]].abs().sum()) > 0.5 * float(exact.abs().sum())
