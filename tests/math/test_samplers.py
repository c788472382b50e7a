"""The kernels among themselves, against other solvers, and in their limits."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from flowalign.levels import diffusion_levels, diffusion_timesteps, flow_levels
from flowalign.paths import PredictionType, RectifiedFlow, VariancePreserving
from flowalign.protocols import Path, Sampler
from flowalign.samplers import CPS, DDIM, ODE, Dance, FlowSDE, sampler
from tests.math.test_paths import PATHS, table

FLOW = RectifiedFlow()
STOCHASTIC: list[Sampler] = [DDIM(), FlowSDE(), CPS(), Dance()]
ZERO, ONE = (torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0))


def level(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def draw(count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    key = torch.Generator().manual_seed(3)
    return [torch.randn(4, 2, 6, 6, generator=key, dtype=dtype) for _ in range(count)]


@pytest.mark.parametrize("kernel", STOCHASTIC, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize(("t", "t_next"), [(1.0, 0.9), (0.6, 0.5), (0.1, 0.0)])
def test_without_noise_every_kernel_is_the_ode(kernel: Sampler, t: float, t_next: float) -> None:
    x, v = draw(2)
    law = kernel.step(FLOW, x, v, level(t), level(t_next), ZERO)
    assert bool((law.std == 0).all())
    torch.testing.assert_close(law.mean, x + (t_next - t) * v)
    ode = ODE().step(FLOW, x, v, level(t), level(t_next), ZERO)
    torch.testing.assert_close(law.mean, ode.mean)
    if t_next > 0:  # negative control: with noise the mean moves
        noisy = kernel.step(FLOW, x, v, level(t), level(t_next), level(0.8))
        assert float(noisy.std) > 0
        assert not torch.allclose(noisy.mean, ode.mean, atol=1e-3)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: getattr(p, "prediction_type", "velocity"))
def test_full_eta_is_the_first_order_sde_solver(path: Path) -> None:
    """SDE-DPM-Solver++ (arXiv 2211.01095, eq. 18): (s'/s) e^-h x + a' (1 - e^-2h) x0hat,
    std s' sqrt(1 - e^-2h), h the step of log(alpha/sigma)."""
    x, pred = draw(2)
    t, t_next = level(0.7), level(0.55)
    x0, _ = path.split(x, pred, t)
    alpha, sigma = path.alpha(t_next), path.sigma(t_next)
    h = torch.log(alpha / sigma) - torch.log(path.alpha(t) / path.sigma(t))
    fresh = 1.0 - torch.exp(-2.0 * h)
    mean = sigma / path.sigma(t) * torch.exp(-h) * x + alpha * fresh * x0
    law = DDIM().step(path, x, pred, t, t_next, ONE)
    torch.testing.assert_close(law.mean, mean)
    torch.testing.assert_close(law.std, sigma * fresh.sqrt())
    # Negative control: half the noise is another kernel.
    half = DDIM().step(path, x, pred, t, t_next, level(0.5))
    assert not torch.allclose(half.mean, mean, atol=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("alpha_one", [True, False])
def test_ddim_is_diffusers(kind: PredictionType, eta: float, alpha_one: bool) -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=kind,
        clip_sample=False,
        set_alpha_to_one=alpha_one,
    )
    scheduler.set_timesteps(10)
    path = VariancePreserving(
        alphas_cumprod=scheduler.alphas_cumprod,
        final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
        prediction_type=kind,
    )
    t = diffusion_levels(diffusion_timesteps(10), 1000)
    x, pred, noise = draw(3, torch.float32)
    for i in (0, 5, 9):
        step = int(scheduler.timesteps[i])
        output = scheduler.step(
            pred, step, x, eta=eta, variance_noise=noise if eta > 0 else None, return_dict=False
        )
        law = DDIM().step(path, x, pred, t[i], t[i + 1], level(eta))
        # float32 on both sides, and diffusers' coefficients in float32 as well.
        torch.testing.assert_close(law.sample(noise), output[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", [DDIM(), CPS()], ids=["DDIM", "CPS"])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: getattr(p, "prediction_type", "velocity"))
def test_last_step_is_deterministic_and_gives_x0hat(kernel: Sampler, path: Path) -> None:
    x, pred = draw(2)
    t = level(0.05)
    law = kernel.step(path, x, pred, t, ZERO, ONE)
    assert float(law.std) == 0
    torch.testing.assert_close(law.mean, path.split(x, pred, t)[0])


def test_ddim_is_finite_at_pure_noise_and_forgets_it_at_full_eta() -> None:
    x, v = draw(2)
    law = DDIM().step(FLOW, x, v, ONE, level(0.9), ONE)
    torch.testing.assert_close(law.std, level(0.9))
    torch.testing.assert_close(law.mean, 0.1 * (x - v))
    abar = table().clone()
    abar[-1] = 0.0
    path = VariancePreserving(alphas_cumprod=abar, prediction_type="v_prediction")
    zero_snr = DDIM().step(path, x, v, ONE, level(0.9), level(0.5))
    assert bool(torch.isfinite(zero_snr.mean).all())
    torch.testing.assert_close(zero_snr.std, 0.5 * path.sigma(level(0.9)))


def test_equal_neighbours_of_a_table_are_no_nan() -> None:
    """A final alpha taken from the table: the last step goes nowhere."""
    path = VariancePreserving(alphas_cumprod=table(), final_alpha_cumprod=float(table()[0]))
    x, pred = draw(2)
    law = DDIM().step(path, x, pred, level(1 / 1000), ZERO, ONE)
    torch.testing.assert_close(law.mean, x)
    assert float(law.std) < 1e-7


@pytest.mark.parametrize("kernel", STOCHASTIC, ids=lambda k: type(k).__name__)
def test_one_level_for_all_equals_one_for_each(kernel: Sampler) -> None:
    x, v = draw(2, torch.float32)
    scalars = (level(1.0), level(0.93), level(0.41))
    rows = tuple(s.expand(4).clone() for s in scalars)
    one, each = kernel.step(FLOW, x, v, *scalars), kernel.step(FLOW, x, v, *rows)
    assert torch.equal(one.mean, each.mean)
    assert torch.equal(one.std.expand(4), each.std)


@pytest.mark.parametrize("kernel", STOCHASTIC, ids=lambda k: type(k).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_and_replay_have_equal_log_probs(kernel: Sampler, dtype: torch.dtype) -> None:
    """Bitwise, also when the replay has another batch size."""
    x, v, noise = draw(3, torch.float32)
    args = (level(0.7), level(0.6), level(0.5))
    law = kernel.step(FLOW, x.to(dtype), v, *args)
    x_next = law.sample(noise).to(dtype)
    rollout = law.log_prob(x_next)
    replay = torch.cat(
        [
            kernel.step(FLOW, x[i : i + 1].to(dtype), v[i : i + 1], *args).log_prob(
                x_next[i : i + 1]
            )
            for i in range(4)
        ]
    )
    assert torch.equal(rollout, replay)
    if dtype == torch.bfloat16:  # negative control: a log-prob taken before the rounding
        assert not torch.equal(law.log_prob(law.sample(noise)), replay)


@pytest.mark.parametrize("kernel", [DDIM(), CPS()], ids=["DDIM", "CPS"])
def test_shares_above_one_are_refused(kernel: Sampler) -> None:
    x, v = draw(2)
    for noise in (1.2, -0.1):
        with pytest.raises(AssertionError):
            kernel.step(FLOW, x, v, level(0.7), level(0.6), level(noise))
    with pytest.raises(AssertionError):
        ODE().step(FLOW, x, v, level(0.7), level(0.6), level(0.1))


def test_cps_beyond_one_would_turn_back() -> None:
    """Why the bound: sin(a pi/2) at a = 1.2 is that at a = 0.8."""
    assert math.sin(1.2 * math.pi / 2) == pytest.approx(math.sin(0.8 * math.pi / 2))


def test_noise_levels_of_flow_sde_and_ddim_differ_by_sqrt_two() -> None:
    """a = sqrt(2) eta: for small steps both kernels inject the same variance."""

    def gap(dt: float, a: float) -> float:
        x, v = draw(2)
        t = level(0.6)
        flow = FlowSDE().step(FLOW, x, v, t, t - dt, level(a))
        ddim = DDIM().step(FLOW, x, v, t, t - dt, level(0.495))
        return abs(float(flow.std / ddim.std) ** 2 - 1.0)

    right = 2**0.5 * 0.495
    assert gap(1e-4, right) < 1e-3
    assert gap(1e-3, right) / gap(1e-4, right) == pytest.approx(10.0, rel=0.05)  # first order
    assert gap(1e-4, 0.495) > 0.4  # negative control


def test_table_of_samplers() -> None:
    kinds: dict[str, Callable[[], Sampler]] = {
        "ode": ODE,
        "ddim": DDIM,
        "flow_sde": FlowSDE,
        "cps": CPS,
        "dance": Dance,
    }
    for name, kind in kinds.items():
        assert sampler(name) == kind()


def test_whole_ddim_run_on_two_paths_is_one_run() -> None:
    """DDIM depends on (alpha, sigma) only: a rectified flow tabulated as a VP-like path in the
    ratio sigma/alpha gives the same x0 when states are rescaled to alpha^2 + sigma^2 = 1."""
    t = flow_levels(8)[1:]  # from 7/8 down, where alpha > 0
    alpha, sigma = 1 - t, t
    norm = (alpha.square() + sigma.square()).sqrt()
    abar = (alpha / norm).square()
    path = VariancePreserving(alphas_cumprod=abar[:-1].flip(0), prediction_type="sample")
    levels = torch.arange(7, -1, -1, dtype=torch.float64) / 7
    x, *noises = draw(9)
    flow_x, vp_x = x, x / norm[0]
    for i in range(7):
        x0 = torch.tanh(flow_x)  # any prediction of x0
        torch.testing.assert_close(torch.tanh(vp_x * norm[i]), x0)
        velocity = (flow_x - x0) / t[i]
        eta = level(0.6)
        flow_x = DDIM().step(FLOW, flow_x, velocity, t[i], t[i + 1], eta).sample(noises[i])
        vp_x = DDIM().step(path, vp_x, x0, levels[i], levels[i + 1], eta).sample(noises[i])
    torch.testing.assert_close(vp_x, flow_x)
