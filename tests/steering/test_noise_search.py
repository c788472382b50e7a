"""Noise search: the geometry of neighbours, the law of noised states, and what cannot get worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from flowalign.config.noise_methods import NoiseSearchConfig, affordable, path_marks, price
from flowalign.paths import RectifiedFlow, VariancePreserving, diffuse
from flowalign.protocols import Path
from flowalign.rollout import PromptCache, Request, training_plan, walk
from flowalign.steering.chain import STREAM
from flowalign.steering.noise_cases import settled
from flowalign.steering.noise_search import neighbours, random_search, renoised, zero_order
from flowalign.steering.outcome import Steered
from flowalign.steering.protocols import Finish
from flowalign.steering.session import run_method
from flowalign.steering.standings import Standing, by_ranks, by_reward, picked
from flowalign.types import Sample
from tests.steering.toy_pictures import Colour, PictureGenerator, session, steer_config, suite
from tests.steering.toys import everybody

VP = VariancePreserving(alphas_cumprod=torch.linspace(0.999, 0.01, 100).double())
ODE = {"name": "ode", "num_steps": 6}
KINDS: dict[str, dict[str, Any]] = {
    "random": {"kind": "random", "rounds": 3, "neighbours": 2},
    "zero_order": {"kind": "zero_order", "rounds": 3, "neighbours": 2, "similarity": 0.8},
    "paths": {"kind": "paths", "rounds": 2, "neighbours": 3, "forward": 0.8, "back": 0.5},
}


def search(kind: str, **settings: Any) -> dict[str, Any]:
    return {"name": "noise_search", **KINDS[kind], **settings}


def found(method: dict[str, Any], **options: Any) -> Steered:
    generator = options.pop("generator", None)
    config = steer_config(method, **{"sampler": ODE, **options})
    return run_method(session(config, generator=generator), config.method, budget=config.budget)


def pictures(result: Steered) -> Tensor:
    return torch.stack([sample.media for sample in result.samples])


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.95, 0.999])
def test_neighbours_have_the_length_and_the_angle(tau: float) -> None:
    """Up to float32's rounding. Control: without the projection the angle is off."""
    key = torch.Generator().manual_seed(0)
    noise, draws = torch.randn(3, 2, 16, generator=key), torch.randn(3, 5, 2, 16, generator=key)
    tried = neighbours(noise, draws, tau).double().flatten(2)
    own = noise.double().flatten(1)[:, None]
    length = own.norm(dim=2).expand(3, 5)
    torch.testing.assert_close(tried.norm(dim=2), length, rtol=1e-6, atol=0)
    cosine = (tried * own).sum(dim=2) / length.square()
    assert float((cosine - tau).abs().max()) < 1e-6
    z = draws.double().flatten(2)
    tilted = tau * own / length[..., None] + (1 - tau**2) ** 0.5 * z / z.norm(dim=2, keepdim=True)
    off = (tilted * own).sum(dim=2) / (tilted.norm(dim=2) * length) - tau
    assert float(off.abs().max()) > 1e-4


@pytest.mark.parametrize("path", [RectifiedFlow(), VP], ids=["flow", "vp"])
@pytest.mark.parametrize(("t", "t_back"), [(0.11, 0.89), (0.0, 0.5), (0.4, 1.0)])
def test_noising_keeps_the_marginal(path: Path, t: float, t_back: float) -> None:
    """x_t = alpha x0 + sigma eps becomes alpha' x0 plus noise of variance sigma'^2: coefficients by
    putting in each of x0, eps and the fresh noise alone."""
    now, back = (torch.tensor(value, dtype=torch.float64) for value in (t, t_back))
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    of_x0 = renoised(path, diffuse(path, one, zero, now), zero, now, back)
    of_eps = renoised(path, diffuse(path, zero, one, now), zero, now, back)
    fresh = renoised(path, zero, one, now, back)
    torch.testing.assert_close(of_x0[0, 0], path.alpha(back))
    torch.testing.assert_close(of_eps.square() + fresh.square(), one * path.sigma(back).square())
    added = (path.sigma(back).square() - path.sigma(now).square()).sqrt()  # control: no scaling
    kept = path.alpha(now), path.sigma(now).square() + added.square()
    assert float((kept[0] - path.alpha(back)).abs()) > 0.05


def quadratic(noise: Tensor, round_: int) -> Finish:
    """A reward with one peak, at a noise of ones."""
    reward = -(noise.double() - 1.0).square().flatten(1).sum(dim=1)
    return Finish(verdict=everybody(reward), samples=[], terms={})


def climb(standing: Standing) -> list[Tensor]:
    """The reward (4,) after 0, 1, ... 29 rounds of zero-order search in 6 dimensions."""
    key = torch.Generator().manual_seed(1)
    first, draws = torch.randn(4, 6, generator=key), torch.randn(30, 4, 3, 6, generator=key)

    def tries(noise: Tensor, number: int) -> Tensor:
        return neighbours(noise, draws[number], 0.9)

    ends = [zero_order(first, tries, quadratic, standing, rounds=count) for count in range(30)]
    return [end.finish.verdict.reward for end in ends]


def test_zero_order_never_gets_worse() -> None:
    """And it climbs; the control takes every first neighbour, as a search without its test."""
    rewards = climb(by_reward)
    for before, after in pairwise(rewards):
        assert bool((after >= before).all())
    assert bool((rewards[-1] > rewards[0]).all())

    def newest(finish: Finish, places: Tensor) -> Tensor:
        return torch.arange(places.shape[1]).expand(places.shape).double()

    wandering = climb(newest)
    assert any(bool((after < before).any()) for before, after in pairwise(wandering))


def test_random_search_is_the_best_of_all_tries() -> None:
    """By enumeration, over rounds and groups."""
    noises = torch.randn(3, 4, 2, 6, generator=torch.Generator().manual_seed(2))
    result = random_search(lambda k: noises[k], quadratic, by_reward, rounds=3)
    reward = quadratic(noises.flatten(0, 2), 0).verdict.reward.view(3, 4, 2)
    assert torch.equal(result.finish.verdict.reward, reward.amax(dim=(0, 2)))
    for group, place in enumerate(result.place.tolist()):
        assert torch.equal(result.noise[group], noises[place // 2, group, place % 2])
        told = [list(each.chosen[group]) for each in result.history]
        assert told == [[place % 2] if k == place // 2 else [] for k in range(3)]


@pytest.mark.parametrize("sampler", [ODE, {"name": "ddim", "num_steps": 6, "noise_level": 0.7}])
def test_random_search_is_best_of_n_bit_for_bit(sampler: dict[str, Any]) -> None:
    """3 rounds of 2 noises and best-of-6, in both repetitions; 2 rounds have other ids."""
    options = {"sampler": sampler, "samples_per_prompt": 2}
    ours = found(search("random"), **options)
    best = found({"name": "best_of_n", "candidates": 6}, **options)
    assert torch.equal(pictures(ours), pictures(best))
    assert torch.equal(ours.scores["red"], best.scores["red"])
    assert [s.sample_id for s in ours.samples] == [s.sample_id for s in best.samples]
    assert not torch.equal(pictures(found(search("random", rounds=2), **options)), pictures(best))


@pytest.mark.parametrize("sampler", [ODE, {"name": "ddim", "num_steps": 6, "noise_level": 0.7}])
def test_zero_order_starts_from_the_plain_sample(sampler: dict[str, Any]) -> None:
    """Its first reward is the plain sample's, and the result is nowhere worse."""
    plain = found({"name": "none"}, sampler=sampler)
    ours = found(search("zero_order"), sampler=sampler)
    first = [group.history[0]["reward"][0] for group in ours.populations]
    assert first == [float(value) for value in plain.scores["red"].double()]
    assert bool((ours.scores["red"] >= plain.scores["red"]).all())
    assert ours.mean("red") > plain.mean("red")


@pytest.mark.parametrize("kind", ["random", "zero_order"])
def test_the_winner_is_drawn_again_with_all_steps(kind: str) -> None:
    """Searched in 2 steps: the picture returned is a walk of 6 steps, and no walk of 2."""
    generator = PictureGenerator()
    ours = found(search(kind, search_steps=2), generator=generator)
    assert generator.evaluations == ours.costs.network_evaluations
    short = found(search(kind), sampler={**ODE, "num_steps": 2})
    assert not torch.equal(pictures(ours), pictures(short))
    told = [group.history for group in ours.populations]
    assert told == [group.history for group in short.populations]
    if kind == "zero_order":
        return
    wanted = [
        Request(prompt=s.prompt, prompt_id=s.prompt_id, sample_id=0, start_id=s.sample_id, group=0)
        for s in ours.samples
    ]
    config = steer_config("none", sampler=ODE)
    plan = training_plan(generator, config.sampler, training_step=0, seed=0)
    cond = PromptCache(generator).conditions([request.prompt for request in wanted])
    walked = walk(generator, plan, cond, wanted, seed=0, stream=STREAM)
    assert torch.equal(generator.decode(walked.x[:, -1]), pictures(ours))


@pytest.mark.parametrize("method", [search("zero_order"), search("zero_order", search_steps=3)])
def test_batches_change_nothing(method: dict[str, Any]) -> None:
    """Bit for bit, with the prompts together or alone. Another seed draws other neighbours."""
    whole = found(method)
    for size in (1, 3):
        again = found(method, batch_size=size)
        assert torch.equal(pictures(again), pictures(whole))
        for one, other in zip(again.populations, whole.populations, strict=True):
            assert one.history == other.history
    config = steer_config(method, sampler=ODE)
    alone = run_method(session(config, prompts=[3]), config.method, budget=None)
    assert torch.equal(pictures(alone), pictures(whole)[3:4])
    assert not torch.equal(pictures(found(method, seed=1)), pictures(whole))


def test_paths_begin_and_end_on_the_plan() -> None:
    """The published shares 0.89 and 0.78 on 100 steps: 0.11 -> 0.89 -> 0.08 ... -> 0."""
    method = NoiseSearchConfig(name="noise_search", kind="paths")
    first, marks = path_marks(method, 100, 4)
    assert first == 89
    assert marks == [(11, 92), (14, 95), (17, 97), (19, 100)]
    for steps in range(1, 12):
        for rounds in range(1, 6):
            first, marks = path_marks(method, steps, rounds)
            assert marks[-1][1] == steps
            assert all(0 <= begin < end <= steps for begin, end in [(0, first), *marks])


def test_paths_keep_the_best_of_each_round() -> None:
    """Survivors are the two of largest reward, the answer the one of the last round."""
    ours = found(search("paths"))
    for group in ours.populations:
        assert [len(each["chosen"]) for each in group.history] == [2, 1]
        for each in group.history:
            order = sorted(range(6), key=lambda place, told=each: -told["reward"][place])
            assert each["chosen"] == order[: len(each["chosen"])]
        assert float(group.reward[0]) == max(group.history[-1]["reward"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [45, 60, 200])
def test_a_budget_decides_the_rounds(kind: str, budget: int) -> None:
    """As many as it pays and not one more; counted at the network."""
    generator = PictureGenerator()
    method = {k: v for k, v in search(kind).items() if k != "rounds"}
    found(method, budget=budget, generator=generator)
    config = steer_config(method, budget=budget, sampler=ODE).method
    assert isinstance(config, NoiseSearchConfig)
    rounds = affordable(config, 6, budget)
    assert generator.evaluations == 5 * price(config, 6, rounds) <= 5 * budget
    assert price(config, 6, rounds + 1) > budget
    assert settled(config, 6, None) == config.model_copy(update={"rounds": 4})


def terms(**values: list[float]) -> Finish:
    tensors = {name: torch.tensor(value) for name, value in values.items()}
    total = torch.stack(list(tensors.values())).sum(dim=0).double()
    return Finish(verdict=everybody(total), samples=[], terms=tensors)


def test_ranks_by_hand() -> None:
    """a ranks 0, 1.5, 1.5, 3 and b ranks 3, 2, 1, 0; b's huge scale decides the sum only."""
    finish = terms(a=[1.0, 2.0, 2.0, 9.0], b=[9000.0, 80.0, 7.0, 6.0])
    places = torch.arange(4)[None]
    standing = by_ranks({"a": 1.0, "b": 1.0})(finish, places)
    assert standing.tolist() == [[1.5, 1.75, 1.25, 1.5]]
    assert int(standing.argmax()) == 1
    assert int(by_reward(finish, places).argmax()) == 0
    assert by_ranks({"a": 1.0, "b": -1.0})(finish, places).tolist() == [[-1.5, -0.25, 0.25, 1.5]]
    assert picked(finish, torch.tensor([2, 0])).terms["a"].tolist() == [2.0, 1.0]


@dataclass(frozen=True)
class Scaled(Colour):
    factor: float = 1.0

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        values, valid = Colour.__call__(self, samples)
        return self.factor * values, valid


def test_ranks_do_not_depend_on_the_scales() -> None:
    """A search by ranks is the same when one reward is a thousand times larger; by the sum not."""

    def drawn(combine: str, factor: float) -> Tensor:
        config = steer_config(search("random", combine=combine), rewards=["jpeg", "clip"])
        both = suite(Scaled("red", 0, factor=factor), Colour("green", 1))
        parts = replace(session(config), suite=both)
        return pictures(run_method(parts, config.method, budget=None))

    assert torch.equal(drawn("rank", 1.0), drawn("rank", 1000.0))
    assert not torch.equal(drawn("sum", 1.0), drawn("sum", 1000.0))
