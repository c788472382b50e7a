"""Noise optimisation: the mode of a tilted Gaussian, torch's optimiser, finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowalign import steer
from flowalign.config.noise_methods import NoiseOptimizationConfig, optimisation_price
from flowalign.config.schema import ModelConfig
from flowalign.errors import ConfigError, HealthError, RewardError
from flowalign.paths import RectifiedFlow
from flowalign.pipelines.load import load_pipeline, make_generator
from flowalign.rollout import Request, ode_plan
from flowalign.samplers.ode import ODE
from flowalign.scoring import Entry, RewardSuite
from flowalign.steering import session as parts
from flowalign.steering.chain import PipelineChain
from flowalign.steering.costs import Costs
from flowalign.steering.noise_cases import media_of
from flowalign.steering.noise_optimization import (
    Ascent,
    Drawn,
    clipped,
    nesterov,
    optimised,
    radius_penalty,
)
from flowalign.steering.outcome import Steered
from flowalign.steering.session import run_method
from flowalign.types import Sample
from tests.steering.toy_pictures import PictureGenerator, session, steer_config
from tests.steering.toys import MEAN, SD

SLOW = Ascent(
    iterations=300, learning_rate=0.02, momentum=0.9, clip_norm=math.inf, regularisation=1.0
)
METHOD = {"name": "noise_optimization", "iterations": 6, "learning_rate": 2.0}


@dataclass(frozen=True)
class Warmth:
    """Minus the squared distance of the mean red from 0.7, with its gradient."""

    name: str = "warmth"
    modality: Any = "image"
    differentiable: bool = True
    group_only: bool = False
    score_range: tuple[float, float] = (-1.0, 0.0)
    missing: Callable[[Sample], bool] | None = None

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        red = torch.stack([sample.media[0].mean() for sample in samples])
        valid = [self.missing is None or not self.missing(sample) for sample in samples]
        return -10.0 * (red - 0.7).square(), torch.tensor(valid)


def warm(reward: Any = None) -> RewardSuite:
    return RewardSuite(entries=[Entry(label="warmth", reward=reward or Warmth())], failure="drop")


def found(
    settings: dict[str, Any] | None = None,
    reward: Any = None,
    prompts: Sequence[int] = range(5),
    generator: PictureGenerator | None = None,
    **options: Any,
) -> Steered:
    sampler = {"name": "ode", "num_steps": 3}
    method = METHOD | (settings or {})
    config = steer_config(method, sampler=sampler, rewards=["clip"], **options)
    job = replace(session(config, prompts=prompts, generator=generator), suite=warm(reward))
    return run_method(job, config.method, budget=config.budget)


def pictures(result: Steered) -> Tensor:
    return torch.stack([sample.media for sample in result.samples])


def affine(strength: float) -> Callable[[Tensor], Drawn]:
    """One Euler step of a distilled flow x0 = m + s z, rewarded with lambda x0."""

    def draw(z: Tensor) -> Drawn:
        t, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        velocity = z - (MEAN + SD * z)
        x0 = ODE().step(RectifiedFlow(), z, velocity, t, zero, zero).mean
        return Drawn(reward=strength * x0[:, 0], valid=torch.ones(len(z)).bool(), media=x0)

    return draw


def test_the_mode_of_the_tilted_gaussian() -> None:
    """m + lambda s^2 = 1.780, from anywhere. Control: without the regulariser there is no mode."""
    start = torch.tensor([[-1.0], [0.5], [3.0]])
    climb = optimised(affine(2.0), start, SLOW)
    torch.testing.assert_close(climb.media, torch.full((3, 1), 1.780), rtol=0, atol=1e-3)
    assert bool((climb.history[-1].objective >= climb.history[0].objective).all())
    free = optimised(affine(2.0), start, replace(SLOW, regularisation=0.0))
    assert float(free.media.min()) > 10.0


def test_the_length_of_noise() -> None:
    """sqrt(d - 1) = 127.996 for d = 16384, and not sqrt(d); the density is that of chi."""
    d = 16384

    def slope(length: float) -> float:
        z = torch.full((1, d), length / math.sqrt(d), dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(radius_penalty(z).sum(), z)
        return float(gradient.sum()) / math.sqrt(d)

    assert math.sqrt(d - 1) == pytest.approx(127.996, abs=1e-3)
    assert abs(slope(math.sqrt(d - 1))) < 1e-9 < 1e-3 < slope(math.sqrt(d))
    assert slope(127.9) < 0.0
    z = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    square = z.square().sum(dim=1)
    chi = (
        torch.distributions.Chi2(torch.tensor(40.0).double()).log_prob(square)
        + (2.0 * square.sqrt()).log()
    )
    gap = radius_penalty(z) + chi
    torch.testing.assert_close(gap, gap[:1].expand(6))


def test_steps_are_those_of_torch() -> None:
    """torch.optim.SGD with Nesterov's momentum, and clip_grad_norm_ for each sample alone."""
    key = torch.Generator().manual_seed(0)
    settings = replace(SLOW, learning_rate=0.3, momentum=0.8, clip_norm=0.5)
    z, velocity = torch.randn(3, 4, generator=key), torch.zeros(3, 4)
    leaves = [row.clone().requires_grad_() for row in z]
    torchs = torch.optim.SGD(leaves, lr=0.3, momentum=0.8, nesterov=True, maximize=True)
    for _ in range(5):
        gradient = torch.randn(3, 4, generator=key) * torch.tensor([[0.01], [1.0], [10.0]])
        for leaf, row in zip(leaves, gradient, strict=True):
            leaf.grad = row.clone()
            torch.nn.utils.clip_grad_norm_([leaf], 0.5)
        torchs.step()
        z, velocity = nesterov(z, velocity, clipped(gradient, 0.5), settings)
    torch.testing.assert_close(z, torch.stack([leaf.detach() for leaf in leaves]))
    plain, _ = nesterov(z, torch.zeros(3, 4), z, replace(settings, momentum=0.0))
    assert not torch.allclose(plain, nesterov(z, velocity, z, settings)[0])


def chain_of(generator: Any, num_steps: int, prompts: Sequence[str]) -> PipelineChain:
    requests = [
        Request(prompt=prompt, prompt_id=i, sample_id=0, start_id=0, group=i)
        for i, prompt in enumerate(prompts)
    ]
    return PipelineChain(
        generator=generator,
        plan=ode_plan(generator, num_steps),
        cond=generator.encode(prompts),
        requests=requests,
        particles=1,
        seed=0,
        batch_size=64,
        costs=Costs(),
    )


def test_gradients_through_two_steps_are_finite_differences() -> None:
    """Central differences of a quadratic function are exact, so only rounding (1e-3) is left.

    Control: the gradient of one step, with the first one left out, is another.
    """
    chain = chain_of(PictureGenerator(), 2, ["a", "b"])
    noise = chain.start()

    def loss(z: Tensor) -> Tensor:
        return (media_of(chain, z, checkpointing=True) - 0.3).square().sum()

    z = noise.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z), z)
    for place in [(0, 0, 0, 0), (1, 2, 3, 1), (1, 0, 2, 2)]:
        step = torch.zeros_like(noise)
        step[place] = 0.5
        difference = float(loss(noise + step) - loss(noise - step))
        assert float(gradient[place]) == pytest.approx(difference, rel=1e-3)
    middle = chain.advance(noise, chain.predict(noise, 0, torch.arange(2)), 0, torch.arange(2))[0]
    late = middle.requires_grad_()
    last = chain.advance(late, chain.predict(late, 1, torch.arange(2)), 1, torch.arange(2))[0]
    (other,) = torch.autograd.grad((chain.generator.decode(last) - 0.3).square().sum(), late)
    assert not torch.allclose(other, gradient, rtol=0.05)


def test_the_traced_pipeline_keeps_the_graph() -> None:
    """The built-in model in two steps, decoded: along the gradient the loss changes by its norm.

    Checkpointing changes no bit of it, and asks the network once more for every step.
    """
    config = ModelConfig.model_validate({"name": "shapes", "call": {"max_sequence_length": 0}})
    generator = make_generator(load_pipeline(config, "cpu"), config)
    gradients, asked = [], []
    for checkpointing in (False, True):
        chain = chain_of(generator, 2, ["a red circle", "two blue squares"])
        z = chain.start().requires_grad_()
        loss = media_of(chain, z, checkpointing=checkpointing).square().mean()
        gradients.append(torch.autograd.grad(loss, z)[0])
        asked.append(chain.costs.network_evaluations)
    assert torch.equal(gradients[0], gradients[1])
    assert asked == [4, 8]
    noise, norm = chain.start(), gradients[0].norm()
    with torch.no_grad():
        ends = [
            float(
                media_of(chain, noise + sign * 0.02 * gradients[0] / norm, checkpointing=True)
                .square()
                .mean()
                .double()
            )
            for sign in (1.0, -1.0)
        ]
    assert (ends[0] - ends[1]) / 0.04 == pytest.approx(float(norm), rel=0.03)


def test_it_climbs_from_the_plain_sample() -> None:
    """The first reward is the plain one; the objective returned is the largest of all."""
    generator = PictureGenerator()
    ours = found(generator=generator)
    sampler = {"name": "ode", "num_steps": 3}
    config = steer_config("none", sampler=sampler, rewards=["clip"])
    plain = run_method(replace(session(config), suite=warm()), config.method, budget=None)
    for group, score in zip(ours.populations, plain.scores["warmth"].tolist(), strict=True):
        rewards = [each["reward"][0] for each in group.history]
        assert rewards[0] == pytest.approx(score, rel=1e-6)
        best = max(range(7), key=lambda i, told=group.history: told[i]["objective"])
        assert float(group.reward[0]) == pytest.approx(rewards[best], rel=1e-6)
        assert float(group.reward[0]) > score + 1e-4
        assert [each["iteration"] for each in group.history] == list(range(7))
    price = optimisation_price(NoiseOptimizationConfig.model_validate(METHOD), 3, 6)
    # Forward in 7 iterates and once more in 6 backward passes, which themselves count for two.
    assert price == 3 * (7 + 6 + 2 * 6)
    assert ours.costs.network_evaluations == 5 * price
    assert generator.evaluations == 5 * 3 * (7 + 6)
    assert ours.costs.decodes == generator.decodes == 5 * 7


def test_batches_and_checkpointing_change_nothing() -> None:
    """Bit for bit: each sample has its own clipping and momentum. Another seed is another noise."""
    whole = found()
    for size in (1, 3):
        again = found(batch_size=size)
        assert torch.equal(pictures(again), pictures(whole))
        histories = [[group.history for group in r.populations] for r in (again, whole)]
        assert histories[0] == histories[1]
    stored = found({"checkpointing": False})
    assert torch.equal(pictures(stored), pictures(whole))
    assert stored.costs.network_evaluations == 5 * 3 * (7 + 2 * 6)
    assert torch.equal(pictures(found(prompts=[3])), pictures(whole)[3:4])
    assert not torch.equal(pictures(found(seed=1)), pictures(whole))


def test_a_budget_decides_the_iterations() -> None:
    free = {"iterations": None}
    assert len(found(free, budget=100).populations[0].history) == 1 + 8  # 3 (4 n + 1) <= 100
    generator = PictureGenerator()
    found({**free, "checkpointing": False}, budget=100, generator=generator)
    assert generator.evaluations == 5 * 3 * (1 + 10)  # 3 (3 n + 1) <= 100


def test_a_missing_reward_moves_nothing() -> None:
    """The sample without one stays at its noise, the others are as they are without it."""
    lost = Warmth(missing=lambda sample: sample.prompt_id == 2)
    ours, whole = found(reward=lost), found()
    assert ours.scores["warmth"].isnan().tolist() == [False, False, True, False, False]
    rest = [0, 1, 3, 4]
    assert torch.equal(pictures(ours)[rest], pictures(whole)[rest])
    radii = {each["radius"] for each in ours.populations[2].history}
    assert len(radii) == 1
    assert {each["objective"] for each in ours.populations[2].history} == {None}


@dataclass(frozen=True)
class Broken(Warmth):
    fault: str = "detached"

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        values, valid = Warmth.__call__(self, samples)
        match self.fault:
            case "detached":
                return values.detach(), valid
            case "nan":
                return values * torch.nan, valid
            case "shape":
                return values[:, None], valid
            case "gradient":
                return (values - values.detach()).abs().sqrt(), valid
            case _:
                raise ValueError("broken on purpose")


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [
        ("detached", RewardError, "its values carry no gradient"),
        ("nan", RewardError, "no value is finite"),
        ("shape", RewardError, "returned shape"),
        ("raised", RewardError, "ValueError: broken on purpose"),
        ("gradient", HealthError, "gradient of the reward is not finite"),
    ],
)
def test_faults_of_a_reward_are_told(fault: str, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        found(reward=Broken(fault=fault))


def test_the_users_reward_is_asked_before_the_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A reward of no gradient stops the job while no model has been touched."""

    def load(config: Any, device: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(parts, "load_pipeline", load)
    monkeypatch.chdir(tmp_path)
    for differentiable in (False, True):
        cold = Warmth(differentiable=differentiable)
        monkeypatch.setattr(parts, "build_suite", lambda configs, cold=cold, **_: warm(cold))
        error = AssertionError if differentiable else ConfigError
        with pytest.raises(error, match=r"loaded|follows gradients, and reward `warmth` has none"):
            parts.assemble_steering(steer_config(METHOD, sampler={"name": "ode"}, rewards=["clip"]))


def test_the_shapes_world(tmp_path: Path) -> None:
    """Three lines on the pipeline: CLIP rises, and the exact verifier's score is reported."""
    model = {"name": "shapes", "call": {"max_sequence_length": 0}}
    pipe: Any = load_pipeline(ModelConfig.model_validate(model), "cpu")
    options = {
        "model": model,
        "sampler": {"name": "ode", "num_steps": 2},
        "held_out_rewards": "shapes",
    }
    prompts = ["a red circle left of a blue square", "two green crosses"]
    plain = steer(pipe, prompts, "clip", method="none", **options)
    method = {"name": "noise_optimization", "iterations": 4}
    climbed = steer(pipe, prompts, "clip", method=method, **options)
    assert climbed.steered.mean("clip") > plain.steered.mean("clip") + 0.01
    assert set(climbed.steered.scores) == {"clip", "shapes"}
    search = {"name": "noise_search", "rounds": 2}
    searched = steer(pipe, prompts, "clip", method=search, particles=2, **options)
    assert searched.steered.particles == 5
    assert searched.steered.mean("clip") >= plain.steered.mean("clip")
