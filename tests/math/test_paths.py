"""Paths: the split undoes the target, on every path and for every prediction type."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from flowalign.errors import ConfigError
from flowalign.levels import diffusion_levels, levels_of_ratios
from flowalign.paths import RectifiedFlow, VariancePreserving, diffuse, require_rectified_flow
from flowalign.protocols import Path

Kind = Literal["epsilon", "v_prediction", "sample"]
KINDS: tuple[Kind, ...] = ("epsilon", "v_prediction", "sample")


def table(steps: int = 1000) -> Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64).square()
    return (1.0 - betas).cumprod(0)


PATHS: list[Path] = [
    RectifiedFlow(),
    *(VariancePreserving(alphas_cumprod=table(), prediction_type=kind) for kind in KINDS),
]


def draw(count: int) -> list[Tensor]:
    key = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 5, 5, generator=key, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: getattr(p, "prediction_type", "velocity"))
def test_split_undoes_target(path: Path) -> None:
    x0, eps = draw(2)
    t = torch.tensor([0.001, 0.3, 0.77, 0.999], dtype=torch.float64)
    x, pred = diffuse(path, x0, eps, t), path.target(x0, eps, t)
    found_x0, found_eps = path.split(x, pred, t)
    # x0 from eps loses a factor 1/alpha, eps from x0 a factor 1/sigma: at most 100 here.
    torch.testing.assert_close(found_x0, x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(found_eps, eps, rtol=0, atol=1e-11)
    # Negative control: a level 1 % off is another split.
    wrong_x0, wrong_eps = path.split(x, pred, t * 0.99)
    assert max((wrong_x0 - x0).abs().max(), (wrong_eps - eps).abs().max()) > 1e-3


@pytest.mark.parametrize("path", PATHS, ids=lambda p: getattr(p, "prediction_type", "velocity"))
def test_one_level_for_all_equals_one_for_each(path: Path) -> None:
    x, pred = (value.float() for value in draw(2))
    t = torch.tensor(0.4370001, dtype=torch.float64)
    for one, each in zip(
        path.split(x, pred, t), path.split(x, pred, t.expand(4).clone()), strict=True
    ):
        assert torch.equal(one, each)


def test_velocity_is_eps_minus_x0_and_euler_is_the_ode() -> None:
    x0, eps = draw(2)
    path, t = RectifiedFlow(), torch.tensor(0.6, dtype=torch.float64)
    slope = (diffuse(path, x0, eps, t + 1e-6) - diffuse(path, x0, eps, t - 1e-6)) / 2e-6
    torch.testing.assert_close(path.target(x0, eps, t), slope, rtol=0, atol=1e-8)


def test_levels_of_train_timesteps() -> None:
    abar = table()
    path = VariancePreserving(alphas_cumprod=abar, final_alpha_cumprod=0.9999)
    t = diffusion_levels([999, 500, 1, 0], 1000)
    expected = torch.tensor([abar[999], abar[500], abar[1], abar[0], 0.9999])
    # k / N * N is not k in floating point; the interpolation makes that harmless.
    torch.testing.assert_close(path.alpha_cumprod(t), expected.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        path.alpha(t).square() + path.sigma(t).square(), torch.ones(5).double()
    )
    between = path.alpha_cumprod(torch.tensor(500.5 / 1000, dtype=torch.float64))
    torch.testing.assert_close(between, (abar[499] + abar[500]) / 2)


def test_final_alpha_one_ends_in_clean_data() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    path = VariancePreserving(alphas_cumprod=table())
    assert path.sigma(zero) == 0
    assert path.alpha(zero) == 1
    clamped = VariancePreserving(alphas_cumprod=table(), final_alpha_cumprod=float(table()[0]))
    assert clamped.sigma(zero) > 0.02  # DDPO's convention


def test_levels_of_ratios_invert_the_table() -> None:
    path = VariancePreserving(alphas_cumprod=table())
    ratios = torch.logspace(1.1, -1.5, 12, dtype=torch.float64)
    t = levels_of_ratios(path, ratios)
    assert bool((t[:-1] > t[1:]).all())
    torch.testing.assert_close(path.sigma(t[:-1]) / path.alpha(t[:-1]), ratios)
    with pytest.raises(AssertionError):
        levels_of_ratios(path, torch.tensor([100.0]))


def test_zero_terminal_snr_needs_v_or_x0_prediction() -> None:
    abar = table().clone()
    abar[-1] = 0.0
    path = VariancePreserving(alphas_cumprod=abar, prediction_type="v_prediction")
    x, pred = draw(2)
    x0, eps = path.split(x, pred, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(x0, -pred)
    torch.testing.assert_close(eps, x)
    with pytest.raises(ConfigError, match="alphas_cumprod reaches 0"):
        VariancePreserving(alphas_cumprod=abar, prediction_type="epsilon")


def test_flow_samplers_refuse_other_paths() -> None:
    require_rectified_flow(RectifiedFlow(), "dance")
    with pytest.raises(ConfigError, match="VariancePreserving"):
        require_rectified_flow(VariancePreserving(alphas_cumprod=table()), "dance")
