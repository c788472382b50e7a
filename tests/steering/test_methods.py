"""The methods on a generator: plain sampling as their limit, batches, budgets, what is returned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowalign.config.sampling import SamplerConfig
from flowalign.config.steering import SteerConfig
from flowalign.errors import ConfigError, RewardError
from flowalign.gaussian import Gaussian
from flowalign.paths import VariancePreserving
from flowalign.rollout import PromptCache, Request, training_plan, walk
from flowalign.steering.chain import STREAM, PipelineChain, log_ratio
from flowalign.steering.costs import Costs
from flowalign.steering.methods import evaluations, particles_of
from flowalign.steering.outcome import Steered
from flowalign.steering.protocols import Situation
from flowalign.steering.session import run_method
from tests.steering.toy_pictures import (
    Colour,
    PictureGenerator,
    session,
    steer_config,
    suite,
)

STRONG = 200.0
METHODS: dict[str, dict[str, Any]] = {
    "best_of_n": {"name": "best_of_n", "candidates": 4},
    "halving": {"name": "best_of_n", "candidates": 5, "halvings": 2},
    "fk": {"name": "fk", "particles": 4, "strength": STRONG},
    "fk_all": {"name": "fk", "particles": 4, "strength": STRONG, "output": "all"},
    "fk_draw": {"name": "fk", "particles": 4, "strength": 60, "output": "draw"},
    "fk_linear": {"name": "fk", "particles": 4, "strength": STRONG, "preview": "linear"},
    "svdd": {"name": "svdd", "candidates": 4, "strength": STRONG},
    "random": {"name": "noise_search", "kind": "random", "rounds": 2, "neighbours": 2},
    "paths": {"name": "noise_search", "kind": "paths", "rounds": 2, "back": 0.5},
}
SAMPLERS = [
    {"name": "ddim", "noise_level": 0.7},
    {"name": "ddim", "noise_level": 0.5, "noise": {"schedule": "cosine"}},
    {"name": "flow_sde", "noise_level": 0.7},
    {"name": "cps", "noise_level": 0.8},
    {"name": "dance", "noise_level": 0.3},
]


def steered(config: SteerConfig, **options: Any) -> Steered:
    return run_method(session(config, **options), config.method, budget=config.budget)


def pictures(result: Steered) -> Tensor:
    return torch.stack([sample.media for sample in result.samples])


def plain(config: SteerConfig, generator: PictureGenerator) -> Tensor:
    """Media of `flowalign.rollout.walk` for the five prompts."""
    plan = training_plan(generator, config.sampler, training_step=0, seed=config.seed)
    wanted = [
        Request(prompt=f"prompt {i}", prompt_id=i, sample_id=0, start_id=0, group=i)
        for i in range(5)
    ]
    cond = PromptCache(generator).conditions([request.prompt for request in wanted])
    trajectory = walk(generator, plan, cond, wanted, seed=config.seed, stream=STREAM)
    return generator.decode(trajectory.x[:, -1])


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize(
    "method",
    [
        "none",
        {"name": "fk", "particles": 1, "strength": STRONG},
        {"name": "svdd", "candidates": 1, "strength": STRONG},
        {"name": "best_of_n", "candidates": 1},
    ],
    ids=str,
)
def test_one_particle_is_plain_sampling_bit_for_bit(
    method: dict[str, Any] | str, sampler: dict[str, Any]
) -> None:
    config = steer_config(method, sampler={"num_steps": 6, **sampler})
    assert torch.equal(pictures(steered(config)), plain(config, PictureGenerator()))
    other = steer_config(method, sampler={"num_steps": 6, **sampler}, seed=1)
    assert not torch.equal(pictures(steered(other)), plain(config, PictureGenerator()))


def test_lambda_0_is_plain_sampling_bit_for_bit() -> None:
    """The first particle of four, none of which was resampled; a strong lambda moves it."""
    config = steer_config({"name": "fk", "particles": 4, "strength": 0.0, "output": "all"})
    expected = plain(config, PictureGenerator())
    assert torch.equal(pictures(steered(config))[::4], expected)
    strong = steer_config(METHODS["fk_all"])
    assert not torch.equal(pictures(steered(strong))[::4], expected)


def test_weights_of_rewards() -> None:
    """A negative weight steers away; the reward of a particle is the weighted sum of the terms."""
    config = steer_config(METHODS["fk"])
    parts = session(config)
    away = replace(parts, suite=suite(Colour("red", 0), weight=-1.0))
    mixed = replace(parts, suite=suite(Colour("red", 0), Colour("green", 1), weight=0.5))
    base = steered(steer_config("none")).mean("red")
    assert (
        steered(config).mean("red")
        > base
        > run_method(away, config.method, budget=None).mean("red")
    )
    for group in run_method(mixed, config.method, budget=None).populations:
        total = 0.5 * group.terms["red"] + 0.5 * group.terms["green"]
        torch.testing.assert_close(group.reward.float(), total)


def test_a_variance_preserving_path() -> None:
    """The same on a diffusion with eps prediction, by DDIM with eta 1 (DDPM's noise)."""
    path = VariancePreserving(alphas_cumprod=torch.linspace(0.999, 0.01, 100).double())
    for method in ("none", {"name": "fk", "particles": 1}):
        config = steer_config(method)
        found = steered(config, generator=PictureGenerator(path=path))
        assert torch.equal(pictures(found), plain(config, PictureGenerator(path=path)))
    config = steer_config(METHODS["fk"])
    better = steered(config, generator=PictureGenerator(path=path))
    base = steered(steer_config("none"), generator=PictureGenerator(path=path))
    assert better.mean("red") > base.mean("red") + 0.01


@pytest.mark.parametrize("name", METHODS)
def test_steering_helps(name: str) -> None:
    """Over the five prompts and six seeds; all particles alike gain least, 0.005 a seed."""
    seeds = range(6)
    base = sum(steered(steer_config("none", seed=s)).mean("red") for s in seeds)
    better = sum(steered(steer_config(METHODS[name], seed=s)).mean("red") for s in seeds)
    assert better > base + 0.02


@pytest.mark.parametrize("name", METHODS)
def test_batches_and_other_prompts_change_nothing(name: str) -> None:
    """Bit for bit: network calls of 1, 3 or 64 samples, prompts together or alone; twice."""
    whole = steered(steer_config(METHODS[name]))
    for size in (1, 3, 64):
        again = steered(steer_config(METHODS[name], batch_size=size))
        assert torch.equal(pictures(again), pictures(whole))
        assert torch.equal(again.scores["blue"], whole.scores["blue"])
        for first, second in zip(again.populations, whole.populations, strict=True):
            assert first.history == second.history
            assert first.log_z == second.log_z
    alone = steered(steer_config(METHODS[name]), prompts=[3])
    count = len(alone.samples)
    assert torch.equal(pictures(alone), pictures(whole)[3 * count : 4 * count])


@pytest.mark.parametrize("name", METHODS)
def test_costs_are_counted(name: str) -> None:
    """Against the generator's own counters and against the price that a budget is divided by."""
    generator = PictureGenerator()
    config = steer_config(METHODS[name])
    found = steered(config, generator=generator)
    plan = training_plan(generator, config.sampler, training_step=0, seed=0)
    price = evaluations(config.method, plan, found.particles)
    assert found.costs.network_evaluations == generator.evaluations == 5 * price
    assert found.costs.decodes == generator.decodes
    judged = found.costs.reward_calls
    assert judged == found.costs.decodes + found.costs.linear_previews
    assert (found.costs.linear_previews > 0) is (name == "fk_linear")
    assert found.costs.seconds > 0
    assert found.costs.peak_memory_mib > 0


@pytest.mark.parametrize(
    ("method", "budget", "count"),
    [
        ({"name": "fk"}, 59, 9),
        ({"name": "fk"}, 6, 1),
        ({"name": "best_of_n"}, 59, 9),
        ({"name": "best_of_n", "halvings": 1, "start": 0.4, "stop": 0.4}, 59, 12),
        ({"name": "svdd"}, 59, 11),
        ({"name": "svdd"}, None, 4),
        ({"name": "fk", "particles": 7}, None, 7),
    ],
    ids=str,
)
def test_a_budget_decides_the_particles(
    method: dict[str, Any], budget: int | None, count: int
) -> None:
    """As many as it pays, and one more would be too many."""
    config = steer_config(method, budget=budget)
    generator = PictureGenerator()
    plan = training_plan(generator, config.sampler, training_step=0, seed=0)
    assert particles_of(config.method, plan, budget) == count
    if budget is not None:
        assert evaluations(config.method, plan, count) <= budget
        assert evaluations(config.method, plan, count + 1) > budget
        found = steered(config, generator=generator)
        assert generator.evaluations <= 5 * budget
        assert found.particles == count


def test_a_budget_that_pays_nothing() -> None:
    config = steer_config({"name": "fk"}, sampler={"num_steps": 6, "noise_level": 1.0})
    plan = training_plan(PictureGenerator(), SamplerConfig(num_steps=9), training_step=0, seed=0)
    with pytest.raises(ConfigError, match="one sample takes 9"):
        particles_of(config.method, plan, 8)


def test_what_is_returned() -> None:
    """`best` has the largest reward, `all` everything, `draw` one by weight."""
    everything = steered(steer_config(METHODS["fk_all"]))
    best = steered(steer_config(METHODS["fk"]))
    assert len(everything.samples) == 20
    assert len(best.samples) == 5
    red = everything.scores["red"].view(5, 4)
    assert torch.equal(best.scores["red"], red.max(dim=1).values)
    drawn = [steered(steer_config(METHODS["fk_draw"], seed=s)) for s in range(4)]
    places = [group.returned[0] for result in drawn for group in result.populations]
    best_places = [int(group.reward.argmax()) for result in drawn for group in result.populations]
    assert places != best_places
    for result in drawn:
        for group in result.populations:
            assert group.log_weight is not None
            assert float(group.log_weight.exp().sum()) == pytest.approx(1.0)


def test_repetitions_are_independent() -> None:
    config = steer_config({"name": "fk", "particles": 3, "strength": 5}, samples_per_prompt=2)
    found = steered(config)
    assert [group.repeat for group in found.populations] == [0, 1] * 5
    ids = [[sample.sample_id for sample in group.samples] for group in found.populations[:2]]
    assert ids == [[0, 1, 2], [3, 4, 5]]
    assert not torch.equal(pictures(found)[0], pictures(found)[1])
    once = steered(steer_config({"name": "fk", "particles": 3, "strength": 5}))
    assert torch.equal(pictures(once)[0], pictures(found)[0])


def test_rewards_that_are_missing_for_all() -> None:
    """FK and best-of-N cannot choose; a single end has no score."""
    red = Colour("red", 0, missing=lambda sample: sample.prompt_id == 2)
    for name in ("fk", "fk_all", "best_of_n"):
        with pytest.raises(RewardError, match="any of the 4 particles of prompt 2"):
            steered(steer_config(METHODS[name]), red=red)
    for name in ("svdd", "none"):
        found = steered(steer_config(METHODS.get(name, name)), red=red)
        assert found.scores["red"].isnan().tolist() == [False, False, True, False, False]
        assert found.mean("red") == pytest.approx(float(found.scores["red"].nanmean()))


def test_a_missing_reward_of_one_particle_is_survived() -> None:
    red = Colour("red", 0, missing=lambda sample: sample.sample_id == 1)
    found = steered(steer_config(METHODS["fk_all"]), red=red)
    for group in found.populations:
        assert group.log_weight is not None
        assert group.valid.tolist() == [True, False, True, True]
        assert float(group.log_weight[1]) == -torch.inf
        assert all(look["reward"][1] is None for look in group.history)


def test_the_ratio_of_a_proposal_is_of_whole_latents() -> None:
    """Against torch.distributions, summed over the elements."""
    key = torch.Generator().manual_seed(0)
    x, p, q = (torch.randn(3, *(2, 4), generator=key, dtype=torch.float64) for _ in range(3))
    std, wider = torch.tensor(0.7), torch.tensor(0.9)
    found = log_ratio(Gaussian(mean=p, std=std), Gaussian(mean=q, std=wider), x)
    normal = torch.distributions.Normal
    expected = normal(p, 0.7).log_prob(x) - normal(q, 0.9).log_prob(x)
    torch.testing.assert_close(found, expected.flatten(1).sum(1), rtol=1e-6, atol=1e-6)


def test_a_proposal_is_asked_at_every_noisy_step() -> None:
    """A proposal that is the base law changes nothing; another one does, and is told the state."""
    seen: list[int] = []

    def shifted(base: Gaussian, situation: Situation) -> Gaussian:
        seen.append(situation.step)
        assert situation.x.shape == situation.pred.shape == base.mean.shape
        assert situation.cond.size == len(situation.requests) == len(base.mean)
        return Gaussian(mean=base.mean + 0.1, std=base.std)

    config, generator = steer_config("fk"), PictureGenerator()
    plan = training_plan(generator, config.sampler, training_step=0, seed=0)
    requests = [
        Request(prompt="a", prompt_id=0, sample_id=k, start_id=k, group=0) for k in range(2)
    ]
    ends = []
    for proposal in (None, lambda base, situation: base, shifted):
        chain = PipelineChain(
            generator=generator,
            plan=plan,
            cond=generator.encode(["a", "a"]),
            requests=requests,
            particles=2,
            seed=0,
            batch_size=1,
            costs=Costs(),
            proposal=proposal,
        )
        x, rows = chain.start(), torch.arange(2)
        for step in range(chain.num_steps):
            x, ratio = chain.advance(x, chain.predict(x, step, rows), step, rows)
            assert (ratio is not None) is (proposal is shifted and step < 5)
        ends.append(x)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("sampler", "method"),
    [
        ({"name": "ddim", "noise_level": 1.0}, {"potential": "max"}),
        ({"name": "flow_sde", "noise_level": 0.7}, {"potential": "difference"}),
        ({"name": "cps", "noise_level": 0.8}, {"resampling": "ssp", "ess_threshold": 1}),
        ({"name": "dance", "noise_level": 0.3}, {"potential": "reward_to_go", "looks": 2}),
        ({"name": "ddim", "noise_level": 0.8, "noise": "cosine"}, {"tempering": 0.6}),
    ],
    ids=str,
)
def test_the_target_is_the_samplers_own_law_tilted(
    sampler: dict[str, Any], method: dict[str, Any]
) -> None:
    """E Z-hat = E exp(lambda r) under each discretised sampler, whose law here is Gaussian.

    Red is a mean of 16 independent normals (the picture's clamp lies beyond 4 deviations), so
    E exp(lambda r) = exp(lambda m + lambda^2 v / 2) with m, v of plain samples; lambda v^(1/2)
    is about 1.
    """
    lam, runs = 33.0, 300
    one = {"sampler": {"num_steps": 6, **sampler}, "samples_per_prompt": runs}
    plain_red = steered(steer_config("none", **one), prompts=[0]).scores["red"].double()
    fk = {"name": "fk", "particles": 4, "strength": lam, "ess_threshold": 0.95, **method}
    found = steered(steer_config(fk, seed=7, **one), prompts=[0])
    mean, variance = float(plain_red.mean()), float(plain_red.var())
    log_z = lam * mean + 0.5 * lam**2 * variance
    ratio = torch.tensor([group.log_z for group in found.populations]).sub(log_z).exp()
    error = (float(ratio.var()) / runs + lam**2 * variance / runs) ** 0.5
    assert abs(float(ratio.mean()) - 1.0) < 4.5 * error < 0.45
    looks = [look for group in found.populations for look in group.history]
    assert sum(look["resampled"] for look in looks) > 30
