"""A learned value of states on their way: what it answers, what it cannot spoil, what it saves."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowalign.config.jobs import STEER
from flowalign.config.load import load_for
from flowalign.errors import ConfigError
from flowalign.noisy_reward.files import save_reward
from flowalign.noisy_reward.fit import new_network
from flowalign.rollout import Request, training_plan
from flowalign.steering.chain import PipelineChain
from flowalign.steering.costs import Costs
from flowalign.steering.feynman_kac import Outcome, feynman_kac
from flowalign.steering.learned_value import LearnedValue
from flowalign.steering.noisy_guidance import reward_name, weights_of
from flowalign.steering.session import run_method
from flowalign.steering.weights import log_evidence
from flowalign.types import Cond
from tests.noisy_reward.toy import card
from tests.steering.toy_pictures import PictureGenerator, session, steer_config
from tests.steering.toys import (
    SD,
    GaussianChain,
    OnPrediction,
    Verdict,
    everybody,
    evidence,
    expectation,
    quadratic,
    steering,
    tilted_quadratic,
)

TOY = card(
    heads=[
        {"name": "colour", "mean": 0.5, "std": 2.0},
        {"name": "count", "mean": -1.0, "std": 3.0},
    ],
    latent_shape=(3, 4, 4),
    text={"name": "mean", "tokens": 1, "width": 1},
)
ROWS = torch.tensor([4, 0, 3])


class Told(nn.Module):
    """Heads: what text and level say; the first element of the state."""

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return torch.stack([text[:, 0, 0] + 10.0 * t.float(), x[:, 0, 0, 0]], dim=1)


def value(weights: list[float], batch_size: int = 64) -> LearnedValue:
    """Of five particles, each with a text of its own."""
    config = steer_config("fk")
    generator = PictureGenerator()
    plan = training_plan(generator, config.sampler, training_step=0, seed=0)
    texts = torch.arange(5.0)
    requests = [
        Request(prompt=str(i), prompt_id=i, sample_id=0, start_id=0, group=i) for i in range(5)
    ]
    chain = PipelineChain(
        generator=generator,
        plan=plan,
        cond=Cond(batched={"mean": texts}, shared={}, size=5),
        requests=requests,
        particles=1,
        seed=0,
        batch_size=batch_size,
        costs=Costs(),
    )
    network: Any = Told()
    judge: Any = None  # asked at the end only
    return LearnedValue(
        chain=chain,
        judge=judge,
        reward=(network, TOY),
        weights=torch.tensor(weights, dtype=torch.float64),
    )


def test_the_weighted_heads_in_the_units_of_the_rewards() -> None:
    """sum_j w_j (mean_j + std_j h_j), of each row's own text, at the level of the step."""
    x = torch.randn(3, 3, 4, 4)
    for batch_size in (64, 2):
        asked = value([1.0, -0.5], batch_size)
        found = asked.promise(x, torch.zeros_like(x), 2, ROWS)
        t = float(asked.chain.plan.t[2])
        colour = 0.5 + 2.0 * (ROWS.double() + 10.0 * t)
        count = -1.0 + 3.0 * x[:, 0, 0, 0].double()
        torch.testing.assert_close(found.reward, colour - 0.5 * count, rtol=1e-6, atol=1e-5)
        assert bool(found.valid.all()) and asked.chain.costs.noisy_reward_passes == 3
    later = asked.promise(x, torch.zeros_like(x), 3, ROWS)
    assert not torch.allclose(later.reward, found.reward)


def test_no_finite_number_is_no_reward() -> None:
    x = torch.zeros(3, 3, 4, 4)
    x[1, 0, 0, 0] = torch.nan
    found = value([1.0, 1.0]).promise(x, x, 2, ROWS)
    assert found.valid.tolist() == [True, False, True]


def test_weights_by_head() -> None:
    """All 1 where none is given, 0 for those that are left out."""
    assert weights_of(TOY, {}) == [1.0, 1.0]
    assert weights_of(TOY, {"count": -2.0}) == [0.0, -2.0]
    with pytest.raises(ConfigError, match="no head"):
        weights_of(TOY, {"size": 1.0})


@dataclass(kw_only=True)
class OnState(OnPrediction):
    """Promises by a function of the predicted end's mean and variance given the state."""

    chain: GaussianChain
    promised: Any

    def promise(self, x: Tensor, pred: Tensor, step: int, rows: Tensor) -> Verdict:
        a = self.chain.alpha(step)
        variance = SD**2 * (1.0 - a * a) / (a * a * SD**2 + 1.0 - a * a)
        return everybody(self.promised(pred[:, 0], variance))


LAMBDA = 3.0


def soft_value(mean: Tensor, variance: float) -> Tensor:
    """log E[exp(-lambda (x - 2)^2 / 2)] / lambda of N(mean, variance)."""
    scale = torch.tensor(1.0 + LAMBDA * variance)
    return -0.5 * (mean - 2.0).square() / scale - 0.5 * scale.log() / LAMBDA


PROMISES = {
    "soft value": soft_value,
    "reward of the predicted end": lambda mean, variance: quadratic(mean),
    "nonsense": lambda mean, variance: 0.4 * torch.sin(3.0 * mean),
}


def run(promised: Any) -> tuple[Outcome, Tensor]:
    chain = GaussianChain(groups=4000, particles=4, seed=3)
    asked = OnState(reward=quadratic, chain=chain, promised=promised)
    settings = steering(strength=LAMBDA, looks=13)
    outcome = feynman_kac(chain, asked, settings, groups=4000, particles=4)
    return outcome, asked.ends.view(4000, 4)


def test_any_value_leaves_the_target_and_the_soft_value_is_the_best() -> None:
    """log Z and mean hold for all three, and log Z varies least with the soft value."""
    truth, spread = tilted_quadratic(LAMBDA), {}
    for name, promised in PROMISES.items():
        outcome, ends = run(promised)
        assert evidence(outcome, truth.log_z).off(1.0) < 4.5, name
        assert expectation(outcome, ends).off(truth.mean) < 4.5, name
        spread[name] = float(log_evidence(outcome.weights).std())
    assert spread["soft value"] < 0.95 * spread["reward of the predicted end"]
    assert spread["reward of the predicted end"] < 0.95 * spread["nonsense"]


class OwnRed(nn.Module):
    """The mean red of the state; with `sign` -1 its opposite."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        red = self.sign * x[:, 0].mean(dim=(1, 2))
        return torch.stack([red, torch.zeros_like(red)], dim=1)


@pytest.mark.parametrize("name", ["fk", "svdd"])
def test_methods_follow_it_and_decode_ends_only(name: str, tmp_path: Path) -> None:
    """Particles that the network prefers survive; upside down, the others do."""
    save_reward(tmp_path / "trained", new_network(TOY, 0), TOY)
    size = {"particles": 8, "output": "draw"} if name == "fk" else {"candidates": 8}
    method = {
        "name": name,
        **size,
        "strength": 30,
        "learned": {"reward": str(tmp_path / "trained"), "weights": {"colour": 1}},
    }
    config = steer_config(method)
    means = {}
    for sign in (1.0, -1.0):
        network: Any = OwnRed(sign)
        rewards = {str(tmp_path / "trained"): (network, TOY)}
        job = replace(session(config, prompts=range(40)), noisy_rewards=rewards)
        found = run_method(job, config.method, budget=None)
        ends = 40 * (8 if name == "fk" else 1)
        assert found.costs.decodes == found.costs.reward_calls == ends
        assert found.costs.noisy_reward_passes > 0 and found.costs.linear_previews == 0
        means[sign] = float(found.scores["red"].mean())
    assert means[1.0] > means[-1.0] + 0.01


def test_what_cannot_be(tmp_path: Path) -> None:
    """Told by the config, before anything is loaded."""
    folder = tmp_path / "trained"
    save_reward(folder, new_network(TOY, 0), TOY)
    job = {"output": "unused", "prompts": ["a"], "rewards": ["shapes"]}
    told = {
        "no head": {"reward": str(folder), "weights": {"color": 1}},
        "no such file": {"reward": str(tmp_path / "none")},
    }
    for what, learned in told.items():
        with pytest.raises(ConfigError, match=what):
            loaded(tmp_path, job, {"name": "svdd", "learned": learned})
    good = {"name": "fk", "learned": {"reward": str(folder)}}
    with pytest.raises(ConfigError, match="needs no preview"):
        loaded(tmp_path, job, {**good, "preview": "linear"})
    with pytest.raises(ConfigError, match="proposal sampler"):
        loaded(tmp_path, {**job, "rewards": ["clip"]}, {**good, "proposal": "gradient"})
    assert reward_name(loaded(tmp_path, job, good).method) == str(folder)
    assert reward_name(loaded(tmp_path, job, {"name": "fk"}).method) is None


def loaded(folder: Path, job: dict[str, Any], method: dict[str, Any]) -> Any:
    path = folder / "job.yaml"
    path.write_text(json.dumps({**job, "method": method}))
    return load_for(STEER, str(path), []).config
