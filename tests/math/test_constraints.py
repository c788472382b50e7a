"""Lagrange multipliers of constrained rewards: signs, limits, SGD, and the mixture of credits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowalign.advantages import advantages, group_advantages
from flowalign.config.advantage import AdvantageConfig
from flowalign.config.shaping import ShapingConfig
from flowalign.config.shaping_constraints import MultiplierConfig
from flowalign.constraints import MULTIPLIER, mixed, multiplier, stepped
from flowalign.shaping import shaped
from flowalign.types import Scored

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def scored(shift: float = 0.0) -> Scored:
    """Three groups of four; `b` has mean `shift` but for its one sample without a score."""
    terms = {name: draw(12, seed=k).float() for k, name in enumerate("ab")}
    valid = {name: torch.ones(12, dtype=torch.bool) for name in "ab"}
    valid["b"][5] = False
    terms["b"] += shift - terms["b"][valid["b"]].mean()
    terms["b"][5] = math.nan
    group = torch.arange(3).repeat_interleave(4)
    weights = {"a": 1.0, "b": 0.0}
    return Scored(group=group, prompt_id=group, terms=terms, valid=valid, weights=weights)


def config(kind: str, **keys: object) -> ShapingConfig:
    one = {"reward": "b", "threshold": 0.5, "kind": kind}
    return ShapingConfig.model_validate({"constraints": [one]} | keys)


@pytest.mark.parametrize(
    ("kind", "mean", "direction"),
    [
        ("at_least", 0.0, 1),
        ("at_least", 1.0, -1),
        ("at_most", 0.0, -1),
        ("at_most", 1.0, 1),
        ("equal", 0.0, 1),
        ("equal", 1.0, -1),
    ],
)
def test_a_multiplier_grows_exactly_while_its_constraint_is_broken(
    kind: str, mean: float, direction: int
) -> None:
    memory: dict[str, Tensor] = {}
    seen = []
    for _ in range(3):
        shaped(scored(mean), config(kind), memory)
        seen.append(float(multiplier(memory[MULTIPLIER + "b"][0], kind)))
    start = 0.0 if kind == "equal" else 0.5
    steps = torch.tensor([start, *seen]).diff()
    assert (steps * direction > 0).all()


def test_the_step_is_that_of_torchs_sgd_on_the_multipliers_loss() -> None:
    """Minimise mu(rho) (J - theta), gaps as they come, with torch.optim.SGD and autograd."""
    gaps = [0.7, -1.3, 0.2, 0.2]
    for kind in ("at_least", "equal"):
        rho = torch.zeros((), dtype=F64, requires_grad=True)
        sgd = torch.optim.SGD([rho], lr=0.3, momentum=0.6)
        state = torch.zeros(2, dtype=F64)
        settings = MultiplierConfig(learning_rate=0.3, momentum=0.6)
        for gap in gaps:
            sgd.zero_grad()
            (multiplier(rho, kind) * gap).backward()
            sgd.step()
            state = stepped(state, torch.tensor(gap, dtype=F64), kind, settings)
        assert float(state[0]) == pytest.approx(float(rho.detach()), abs=1e-14)
        plain = stepped(torch.zeros(2, dtype=F64), torch.tensor(0.7, dtype=F64), kind, settings)
        assert float(plain[0]) != pytest.approx(float(rho.detach()), abs=1e-3)


def test_multipliers_of_zero_leave_the_main_term_and_of_one_the_constraints() -> None:
    main, parts = draw(6), draw(2, 6, seed=1)
    assert torch.equal(mixed(main, parts, torch.zeros(2, dtype=F64)), main)
    everything = mixed(main, parts, torch.ones(2, dtype=F64))
    assert torch.allclose(everything, parts.mean(dim=0), atol=1e-15)
    half = mixed(main, parts, torch.tensor([0.5, 0.25], dtype=F64))
    assert torch.allclose(half, (1.25 * main + 0.5 * parts[0] + 0.25 * parts[1]) / 2, atol=1e-15)


def test_the_credit_is_the_mixture_of_separately_normalised_advantages() -> None:
    """Any positive scale of either reward leaves it; a sum before normalisation would not."""
    data, memory = scored(), {MULTIPLIER + "b": torch.tensor([0.4, 0.0], dtype=F64)}
    result = shaped(data, config("at_most"), dict(memory))
    counts = data.valid["b"]
    a, b = (group_advantages(data.terms[n].double(), counts, data.group) for n in "ab")
    mu = float(torch.tensor(0.4).sigmoid())
    expected = (1 - mu) * a - mu * b
    assert torch.allclose(result.terms["combined"][counts].double(), expected[counts], atol=1e-6)
    assert torch.equal(result.valid["combined"], counts)
    scaled = Scored(
        group=data.group,
        prompt_id=data.prompt_id,
        terms={"a": data.terms["a"] * 100, "b": data.terms["b"]},
        valid=data.valid,
        weights=data.weights,
    )
    again = shaped(scaled, config("at_most"), dict(memory)).terms["combined"]
    assert torch.allclose(again[counts], result.terms["combined"][counts], atol=1e-3)
    summed = advantages(data, AdvantageConfig())
    assert not torch.allclose(summed[counts].double(), expected[counts], atol=1e-2)


def test_a_step_without_a_score_leaves_the_multiplier() -> None:
    data, memory = scored(), {MULTIPLIER + "b": torch.tensor([0.4, 0.1], dtype=F64)}
    data.valid["b"][:] = False
    result = shaped(data, config("equal"), memory)
    assert memory[MULTIPLIER + "b"].tolist() == [0.4, 0.1]
    assert not result.valid["combined"].any()


def taught(kind: str, sign: float, *, limited: bool = True) -> tuple[float, float]:
    """Where REINFORCE takes the mean of N(m, 0.3^2 I) when x0 + sign x1 is trained on and the mean
    of x1 should keep 1; the average over the last 300 of 400 steps."""
    mean, spread, generator = torch.zeros(2, dtype=F64), 0.3, torch.Generator().manual_seed(4)
    one = {"reward": "b", "threshold": 1.0, "kind": kind}
    keys = {"constraints": [one], "multipliers": {"learning_rate": 0.5}} if limited else {}
    shaping, memory, path = ShapingConfig.model_validate(keys), dict[str, Tensor](), []
    group = torch.arange(4).repeat_interleave(8)
    valid = {name: torch.ones(32, dtype=torch.bool) for name in "ab"}
    for _ in range(400):
        x = mean + spread * torch.randn(32, 2, generator=generator, dtype=F64)
        found = Scored(
            group=group,
            prompt_id=group,
            terms={"a": (x[:, 0] + sign * x[:, 1]).float(), "b": x[:, 1].float()},
            valid=valid,
            weights={"a": 1.0, "b": 0.0},
        )
        credit = advantages(shaped(found, shaping, memory), AdvantageConfig())
        mean = mean + 0.05 * (credit[:, None] * (x - mean) / spread).mean(dim=0)
        path.append(mean)
    x0, x1 = torch.stack(path[-300:]).mean(dim=0).tolist()
    return x0, x1


@pytest.mark.parametrize(("kind", "sign"), [("equal", -1.0), ("at_least", -1.0), ("at_most", 1.0)])
def test_a_toy_run_ends_on_its_constraint(kind: str, sign: float) -> None:
    """The main reward pushes x1 away from 1; x1 swings around it, and x0 still rises.

    Without damping a player and a multiplier circle around the saddle point, so the mean counts.
    """
    x0, x1 = taught(kind, sign)
    assert x1 == pytest.approx(1.0, abs=0.2)
    assert x0 > 2
    assert sign * taught(kind, sign, limited=False)[1] > 2
