"""Flow-NRG on Gaussian data, where the soft value and the tilted law are known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from flowalign.paths import RectifiedFlow, VariancePreserving
from flowalign.protocols import Path
from flowalign.samplers import sampler
from flowalign.steering.noisy_guidance import NoisyGuide
from flowalign.steering.tilting import tilted
from flowalign.types import Cond
from tests.noisy_reward.toy import SD, SumOfEnd, card, exact_prediction, posterior

STEPS, COUNT, STRENGTH = 200, 20_000, 2.0
SPLINED = torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
PATHS: dict[str, Path] = {
    "flow": RectifiedFlow(),
    "epsilon": VariancePreserving(alphas_cumprod=SPLINED),
    "v_prediction": VariancePreserving(alphas_cumprod=SPLINED, prediction_type="v_prediction"),
}


def walked(path: Path, name: str, noise: float, factor: Any) -> Tensor:
    """20,000 ends under guidance by `factor` (t) times the gradient of the exact soft value."""
    key = torch.Generator().manual_seed(0)
    x = torch.randn(COUNT, 1, generator=key, dtype=torch.float64)
    levels = torch.linspace(1.0, 0.0, STEPS + 1, dtype=torch.float64)
    for t, t_next in itertools.pairwise(levels):
        pred = exact_prediction(path, x, t)
        if t < 0.996:
            slope = STRENGTH * posterior(path, x, t)[1]
            pred = tilted(path, pred, factor(t) * slope * torch.ones_like(x), t)
        law = sampler(name).step(path, x, pred, t, t_next, torch.tensor(noise))
        z = torch.randn(COUNT, 1, generator=key, dtype=torch.float64)
        x = law.sample(z.float()).double() if noise and t_next > 0 else law.mean.double()
    return x[:, 0]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(("name", "noise"), [("ode", 0.0), ("ddim", 1.0)])
def test_the_tilted_law(path: Path, name: str, noise: float) -> None:
    """N(0.5, 0.8^2) exp(2 x) is N(1.78, 0.64). 200 steps are 0.02 off, and the noise is 0.006."""
    ends = walked(path, name, noise, lambda t: 1.0)
    assert float(ends.mean()) == pytest.approx(1.780, abs=0.04)
    assert float(ends.var()) == pytest.approx(SD**2, abs=0.04)
    if name == "ode":  # with half the gradient, it is half as far
        half = walked(path, name, noise, lambda t: 0.5)
        assert float(half.mean()) == pytest.approx(1.140, abs=0.04)


def test_other_factors_are_wrong() -> None:
    """On a rectified flow t / (1 - t) is the factor; clipped at 5 it gives 1.676, and t gives 1.037
    (an independent computation of the same toy)."""
    path = RectifiedFlow()
    clipped = walked(path, "ode", 0.0, lambda t: min(1.0, 5.0 * float((1 - t) / t)))
    level = walked(path, "ode", 0.0, lambda t: float(1 - t))
    assert float(clipped.mean()) == pytest.approx(1.676, abs=0.03)
    assert float(level.mean()) == pytest.approx(1.037, abs=0.03)


def test_the_velocity_form() -> None:
    """v - t / (1 - t) grad V, and eps - sqrt(1 - abar) grad V."""
    key = torch.Generator().manual_seed(1)
    pred, slope = (torch.randn(3, 2, 4, 4, generator=key) for _ in range(2))
    t = torch.tensor(0.6, dtype=torch.float64)
    torch.testing.assert_close(tilted(RectifiedFlow(), pred, slope, t), pred - 0.6 / 0.4 * slope)
    path = PATHS["epsilon"]
    sigma = math.sqrt(1.0 - float(SPLINED[599]))
    torch.testing.assert_close(tilted(path, pred, slope, t), pred - sigma * slope)


def guide(exponent: list[float], **changes: Any) -> NoisyGuide:
    network = SumOfEnd(RectifiedFlow())
    settings: dict[str, Any] = {"start": 0.98, "stop": 0.1, "clip": None, **changes}
    return NoisyGuide(
        network=network,  # type: ignore[arg-type]
        card=card(text={"name": "text", "tokens": 1, "width": 5}),
        exponent=torch.tensor(exponent),
        **settings,
    )


COND = Cond(batched={"text": torch.zeros(3, 5)}, shared={}, size=3)


def test_the_gradient_is_that_of_the_weighted_heads() -> None:
    """Each head pulls at its own channel; parameters get no gradient, the state none that stays."""
    x, t = torch.randn(3, 2, 4, 4), torch.tensor(0.6, dtype=torch.float64)
    guided = guide([2.0, -1.0])
    found = guided.gradient(x, t, COND)
    gain = float(posterior(RectifiedFlow(), x, t)[1])
    torch.testing.assert_close(found[:, 0], torch.full((3, 4, 4), 2.0 * gain))
    torch.testing.assert_close(found[:, 1], torch.full((3, 4, 4), -gain))
    assert all(p.grad is None for p in guided.network.parameters())
    assert x.grad is None and not x.requires_grad and not found.requires_grad


def test_levels_and_clip() -> None:
    """Guided between stop and start, by weights that are not all 0; sigma / alpha is cut."""
    levels = [torch.tensor(t, dtype=torch.float64) for t in (1.0, 0.98, 0.5, 0.1, 0.05)]
    assert [guide([1.0, 0.0]).active(t) for t in levels] == [False, True, True, True, False]
    assert not any(guide([0.0, 0.0]).active(t) for t in levels)
    path = RectifiedFlow()
    assert guide([1.0, 0.0], clip=3.0).factor(path, levels[1]) == pytest.approx(3 / 49)
    assert guide([1.0, 0.0], clip=3.0).factor(path, levels[2]) == 1.0
