"""Noise schedules: their budget, their windows, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowalign.config.sampling import SamplerConfig, WindowNoise
from flowalign.errors import ConfigError
from flowalign.levels import (
    diffusers_flow_levels,
    diffusion_levels,
    diffusion_timesteps,
    flow_levels,
)
from flowalign.paths import RectifiedFlow
from flowalign.samplers import sampler
from flowalign.schedules import noise_levels, spend, window_start

GRIDS = {
    "flow": flow_levels(12),
    "shifted": diffusers_flow_levels(12, 3.0),
    "diffusion": diffusion_levels(diffusion_timesteps(12), 1000),
}
SHAPES: dict[str, dict[str, Any]] = {
    "constant": {"schedule": "constant"},
    "linear": {"schedule": "linear"},
    "cosine": {"schedule": "cosine"},
    "exponential": {"schedule": "exponential", "rate": 3.0},
    "first_k": {"schedule": "first_k", "k": 8},
    "hicogen": {"schedule": "hicogen", "eta_min": 0.1, "eta_max": 0.9},
    "window": {"schedule": "window", "size": 7, "move": "fixed"},
}


def config(shape: str | dict[str, Any] = "constant", **settings: Any) -> SamplerConfig:
    noise = SHAPES[shape] if isinstance(shape, str) else shape
    return SamplerConfig.model_validate({"num_steps": 12, "noise": noise, **settings})


def levels(settings: SamplerConfig, t: Tensor, step: int = 0) -> Tensor:
    return noise_levels(settings, t, training_step=step, seed=7)


def budget(noise: Tensor, t: Tensor) -> float:
    return float((noise.square() * (t[:-1] - t[1:]))[:-1].sum())


@pytest.mark.parametrize("kernel", ["ddim", "cps", "flow_sde", "dance"])
@pytest.mark.parametrize("progress", ["sigma", "step"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_budget_is_that_of_the_constant_level(
    shape: str, grid: str, progress: str, kernel: str
) -> None:
    t, settings = GRIDS[grid], {"name": kernel, "noise_level": 0.4, "progress": progress}
    noise = levels(config(shape, **settings), t)
    expected = budget(levels(config("constant", **settings), t), t)
    assert budget(noise, t) == pytest.approx(expected, rel=1e-6)
    assert noise.dtype == torch.float64
    assert noise[-1] == 0
    assert bool((noise >= 0).all())
    if kernel in ("ddim", "cps"):
        assert float(noise.max()) <= 1
    if shape not in ("constant",):  # negative control: the bare shape has another budget
        bare = levels(config(shape, normalise_budget=False, **settings), t)
        assert budget(bare, t) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("level", [0.3, 0.7, 1.0])
def test_constant_is_plain_constant_bit_for_bit(level: float, normalise: bool) -> None:
    noise = levels(config(noise_level=level, normalise_budget=normalise), GRIDS["shifted"])
    assert noise.tolist() == [level] * 11 + [0.0]


def test_shapes_fall_and_the_budget_moves_forward() -> None:
    t = GRIDS["flow"]
    for shape in ("linear", "cosine", "exponential", "hicogen", "first_k"):
        noise = levels(config(shape, noise_level=0.4), t)
        assert bool((noise[:-1] >= noise[1:]).all()), shape
        assert float(noise[0]) > 0.4


def test_shapes_are_their_formulas() -> None:
    """Unshifted grid, so u = 1 - i/T under both kinds of progress."""
    u = 1.0 - torch.arange(12, dtype=torch.float64) / 12
    cosine = (1 + torch.cos(torch.pi * (1 - u))) / 2
    expected = {
        "linear": u,
        "cosine": cosine,
        "exponential": torch.exp(-3.0 * (1 - u)),
        "hicogen": 0.1 + 0.8 * cosine,
        "first_k": (torch.arange(12) < 8).double(),
        "window": (torch.arange(12) < 7).double(),
    }
    for shape, e in expected.items():
        e[-1] = 0.0
        for progress in ("sigma", "step"):
            bare = config(shape, noise_level=0.5, normalise_budget=False, progress=progress)
            torch.testing.assert_close(levels(bare, GRIDS["flow"]), 0.5 * e)


def test_water_filling_caps_and_redistributes() -> None:
    wanted = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    weight = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    eta = spend(0.5, wanted, weight, 1.0)
    assert eta[:2].tolist() == [1.0, 1.0]
    assert float(eta[2] / eta[3]) == pytest.approx(2.0)
    assert float((eta.square() * weight).sum()) == pytest.approx(0.5, rel=1e-12)
    # Negative control: cutting without redistribution loses budget.
    scale = (0.5 / (wanted.square() * weight).sum()).sqrt()
    assert float(((scale * wanted).clamp(max=1.0).square() * weight).sum()) < 0.45
    everything = spend(1.0, wanted, weight, 1.0)
    torch.testing.assert_close(everything, torch.ones(4, dtype=torch.float64))
    assert float(spend(0.0, wanted, weight, 1.0).sum()) == 0


def test_infeasible_budget_names_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"spends 0\.4492, this schedule at most 0\.25") as error:
        levels(config({"schedule": "first_k", "k": 3}, noise_level=0.7), GRIDS["flow"])
    assert error.value.code == "CFG-NOISE-BUDGET"
    # The same window is fine for a kernel without a bound.
    levels(config({"schedule": "first_k", "k": 3}, noise_level=0.7, name="dance"), GRIDS["flow"])


@pytest.mark.parametrize(
    "settings",
    [
        {"noise_level": 1.2},
        {"noise_level": 1.2, "name": "cps"},
        {"shape": {"schedule": "first_k", "k": 12}},
        {"shape": {"schedule": "window", "size": 6, "start": 6}},
        {"shape": {"schedule": "window", "size": 12}},
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        levels(config(**{"normalise_budget": False, **settings}), GRIDS["flow"])


def test_the_ode_has_no_noise() -> None:
    assert levels(config(name="ode"), GRIDS["flow"]).tolist() == [0.0] * 12
    assert levels(config(num_steps=1), flow_levels(1)).tolist() == [0.0]


def test_progressive_window_covers_all_steps_and_starts_again() -> None:
    """MixGRPO on 12 steps: starts 0..7 (never the last step, never cut), then 0 again."""
    noise = WindowNoise(schedule="window", size=4, interval=5)
    starts = [window_start(noise, 12, training_step=k, seed=0) for k in range(0, 45, 5)]
    assert starts == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert window_start(noise, 12, training_step=4, seed=0) == 0
    wide = WindowNoise(schedule="window", size=4, interval=1, stride=3, start=1)
    assert [window_start(wide, 12, training_step=k, seed=0) for k in range(4)] == [1, 4, 7, 1]
    fixed = WindowNoise(schedule="window", size=2, start=3, move="fixed")
    assert {window_start(fixed, 12, training_step=k, seed=k) for k in range(9)} == {3}


def test_random_window_is_keyed() -> None:
    """Equal on all ranks and after a resume, different between steps, global RNG untouched."""
    noise = WindowNoise(schedule="window", size=4, move="random")

    def starts(seed: int) -> list[int]:
        return [window_start(noise, 12, training_step=k, seed=seed) for k in range(60)]

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = starts(seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert starts(seed=3) == first
    assert set(first) == set(range(8))
    assert starts(seed=4) != first


@pytest.mark.parametrize("kernel", ["ddim", "cps", "flow_sde", "dance"])
def test_window_steps_alone_have_log_probs(kernel: str) -> None:
    """No log-prob outside the window, no NaN anywhere; the reference's 0/0 as the control."""
    t = GRIDS["shifted"]
    settings = config(
        {"schedule": "window", "size": 3, "start": 2, "move": "fixed"},
        name=kernel,
        normalise_budget=False,
    )
    noise = levels(settings, t)
    assert torch.nonzero(noise).flatten().tolist() == [2, 3, 4]
    key = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, generator=key)
    for i in range(12):
        pred = torch.tanh(x)
        law = sampler(kernel).step(RectifiedFlow(), x, pred, t[i], t[i + 1], noise[i])
        if noise[i] > 0:
            x = law.sample(torch.randn(3, 8, generator=key))
            assert bool(torch.isfinite(law.log_prob(x)).all())
        else:
            with pytest.raises(AssertionError):
                law.log_prob(law.mean)
            std = law.std.float()
            assert bool(torch.isnan((law.mean - law.mean) / std).all())
            x = law.mean
        assert bool(torch.isfinite(x).all())
