"""Guidance by the gradient of rewards: the tilted law where it is exact, its bias where not."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowalign import rewards
from flowalign.config.gradient_checks import WITHOUT_GRADIENT
from flowalign.config.gradient_methods import GuidanceConfig
from flowalign.errors import ConfigError
from flowalign.paths import RectifiedFlow
from flowalign.protocols import Path
from flowalign.steering import gradient_chains
from flowalign.steering.gradient_cases import extra_evaluations, guided
from flowalign.steering.gradient_chains import guided_steps, slope
from flowalign.steering.outcome import Steered
from flowalign.steering.session import SteeringSession, run_method
from flowalign.steering.tilting import tilted
from tests.math.gaussian_data import GaussianData
from tests.math.test_paths import PATHS
from tests.steering.gaussian_pipeline import DATA, SD_PATH, parts
from tests.steering.toy_pictures import Colour, session, steer_config
from tests.steering.toys import linear, quadratic, tilted_linear, tilted_quadratic

LAMBDA = 2.0


def law(
    reward: Callable[[Tensor], Tensor],
    path: Path,
    *,
    num_steps: int = 200,
    strength: float = LAMBDA,
    recurrence: int = 0,
) -> tuple[float, float]:
    """Mean and variance of guided samples of a deterministic sampler, exactly.

    With a network and a gradient that are linear in x, an end is slope z + offset of its noise z.
    """
    chain, judge = parts(reward, groups=2, particles=1, num_steps=num_steps, path=path)
    method = GuidanceConfig(
        name="guidance", strength=strength, start=0.0, stop=1.0, recurrence=recurrence
    )
    z = chain.start()[:, 0, 0, 0]
    with torch.no_grad():
        contest = guided(chain, judge, method, groups=2, candidates=1)
    ends = torch.stack([sample.media[0, 0, 0] for sample in contest.finish.samples]).detach()
    gain = float((ends[1] - ends[0]) / (z[1] - z[0]))
    return float(ends[0]) - gain * float(z[0]), gain**2


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [0.2, 0.7])
def test_the_tilted_output_is_that_of_tilted_data(path: Path, value: float) -> None:
    """N(m, s2) exp(a x0) is N(m + a s2, s2); the soft value's gradient is a d x0hat / d x."""
    t, a = torch.tensor(value, dtype=torch.float64), 1.7
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None].requires_grad_()
    moved = GaussianData(mean=DATA.mean + a * DATA.variance, variance=DATA.variance)
    x0, _ = path.split(x, DATA.prediction(path, x, t), t)
    (gradient,) = torch.autograd.grad(a * x0.sum(), x)
    pred = DATA.prediction(path, x, t)
    torch.testing.assert_close(tilted(path, pred, gradient, t), moved.prediction(path, x, t))
    # Negative control: a gradient of 0.9 of it.
    wrong = tilted(path, pred, 0.9 * gradient, t).detach()
    assert float((wrong - moved.prediction(path, x, t).detach()).abs().min()) > 1e-3


@pytest.mark.parametrize("path", [RectifiedFlow(), SD_PATH], ids=["flow", "epsilon"])
def test_a_linear_reward_reaches_the_tilted_law(path: Path) -> None:
    """200 steps of a first-order solver: within 0.02 of mean 1.780 and variance 0.640.

    Stable Diffusion's noisiest level still has alpha = 0.068, and sampling begins as if it had
    none: of the mean, the share s alpha / sqrt(alpha^2 s^2 + sigma^2) is missing, tilted or not.
    """
    start = torch.ones((), dtype=torch.float64)
    alpha, sigma = float(path.alpha(start)), float(path.sigma(start))
    kept = 1.0 - 0.8 * alpha / (alpha**2 * DATA.variance + sigma**2) ** 0.5
    truth = tilted_linear(LAMBDA)
    for strength, expected in ((LAMBDA, truth.mean), (0.0, DATA.mean)):
        mean, variance = law(linear, path, strength=strength)
        assert abs(mean - kept * expected) < 0.02
        assert abs(variance - truth.variance) < 0.03  # a linear reward does not change it


def test_another_factor_of_time_misses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """(1 - t) in the place of t / (1 - t) gives 1.56."""

    def weaker(path: Path, pred: Tensor, gradient: Tensor, t: Tensor) -> Tensor:
        return pred - (1.0 - float(t)) * gradient

    monkeypatch.setattr(gradient_chains, "tilted", weaker)
    assert law(linear, RectifiedFlow())[0] == pytest.approx(1.556, abs=0.03)


def test_a_curved_reward_is_overdone() -> None:
    """r(x0hat) forgets the variance of x0 given x: 1.775 and 0.177 for 1.342 and 0.281."""
    mean, variance = law(quadratic, RectifiedFlow())
    truth = tilted_quadratic(LAMBDA)
    assert truth.mean == pytest.approx(1.342, abs=1e-3)
    assert mean == pytest.approx(1.775, abs=0.02)
    assert variance == pytest.approx(0.177, abs=0.02)


def test_recurrence_changes_the_ends_and_keeps_them_finite() -> None:
    method = {"name": "guidance", "strength": 3.0}
    once, thrice = drawn(method), drawn({**method, "recurrence": 2})
    assert not torch.equal(once.samples[0].media, thrice.samples[0].media)
    assert bool(thrice.scores["red"].isfinite().all())
    assert thrice.costs.network_evaluations > 2 * once.costs.network_evaluations


def toy(method: dict[str, Any]) -> SteeringSession:
    """A session whose reward has a gradient; toy pictures are clipped at 0 and 1."""
    config = steer_config(method, rewards=["clip"])
    return session(config, red=Colour("red", 0, differentiable=True))


def drawn(method: dict[str, Any]) -> Steered:
    """The toy's five prompts by this method."""
    job = toy(method)
    return run_method(job, job.config.method, budget=None)


def test_it_raises_the_reward_and_strength_zero_is_plain_sampling_bit_for_bit() -> None:
    plain = drawn({"name": "none"})
    for strength, sign in ((0.0, 0.0), (20.0, 1.0)):
        method = {"name": "guidance", "strength": strength}
        found = drawn(method)
        same = [
            torch.equal(a.media, b.media) for a, b in zip(found.samples, plain.samples, strict=True)
        ]
        assert all(same) == (sign == 0.0)
        gain = (found.scores["red"] - plain.scores["red"]).tolist()
        assert all((each > 0.01) == (sign > 0) for each in gain)


def test_parameters_get_no_gradient() -> None:
    chain, judge = parts(linear, groups=3, particles=1, num_steps=4)
    found = slope(chain, judge, torch.randn(3, 1, 1, 1), 1, torch.arange(3))
    assert float(found.gradient.abs().min()) > 0
    assert all(p.grad is None for p in chain.generator.denoisers()[0].parameters())
    assert not found.pred.requires_grad


def test_costs_and_budget() -> None:
    """A guided step takes 3 evaluations; the budget decides how many candidates."""
    method = {"name": "guidance"}
    job = toy(method)
    found = run_method(job, job.config.method, budget=None)
    chain, _ = parts(linear, groups=1, particles=1, num_steps=6)
    extra = extra_evaluations(job.config.method, chain.plan)
    assert extra == 2 * len(guided_steps(chain.plan, 0.2, 1.0)) == 8
    assert found.costs.network_evaluations == 5 * (6 + extra)
    paid = run_method(job, job.config.method, budget=2 * (6 + extra) + 3)
    assert paid.particles == 2
    with pytest.raises(ConfigError, match="one sample takes 14"):
        run_method(job, job.config.method, budget=6 + extra - 1)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"rewards": ["jpeg"]}, "jpeg has none"),
        ({"method": {"name": "guidance", "start": 0.5, "stop": 0.5}}, "nothing is guided"),
        ({"method": {"name": "fk", "proposal": "gradient"}, "rewards": ["shapes"]}, "shapes has"),
        ({"rewards": ["ocr"]}, "ocr has none"),
        ({"rewards": ["vqascore"]}, "vqascore has none"),
        ({"method": {"name": "fk", "proposal": "gradient", "preview": "linear"}}, "decoder"),
    ],
)
def test_what_cannot_be_guided_is_refused(sections: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        steer_config(**{"method": {"name": "guidance"}, "rewards": ["clip"], **sections})


def test_rewards_without_gradients_are_known_before_anything_is_loaded() -> None:
    """The names in the config's rule are the files whose classes all say so."""
    found = {
        file.stem: set(re.findall(r"^    differentiable: bool = (\w+)", file.read_text(), re.M))
        for file in pathlib.Path(rewards.__file__).parent.glob("*.py")
    }
    assert {name for name, said in found.items() if said == {"False"}} == set(WITHOUT_GRADIENT)
    assert {name for name, said in found.items() if len(said) == 2} == {"exemplar"}  # by measure
