"""The methods that choose the initial noise, on a generator: from a config to populations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from flowalign.config.noise_methods import (
    BACKWARD,
    DEFAULT_ITERATIONS,
    DEFAULT_ROUNDS,
    NoiseMethod,
    NoiseOptimizationConfig,
    NoiseSearchConfig,
    affordable,
    noises_tried,
    path_marks,
    price,
)
from flowalign.config.sampling import SamplerConfig
from flowalign.config.steering import MethodConfig
from flowalign.errors import ConfigError
from flowalign.protocols import Generator
from flowalign.rollout import Plan, Request, as_samples, device_of, start_noise, training_plan
from flowalign.steering.chain import STREAM, PipelineChain
from flowalign.steering.judges import Judge
from flowalign.steering.noise_optimization import Ascent, Climb, Drawn, optimised
from flowalign.steering.noise_search import (
    Found,
    neighbours,
    path_search,
    random_search,
    renoised,
    zero_order,
)
from flowalign.steering.outcome import Population
from flowalign.steering.populations import Owners, numbers, population
from flowalign.steering.protocols import Finish
from flowalign.steering.reward_gradients import graded
from flowalign.steering.standings import Standing, by_ranks, by_reward


def settled(method: MethodConfig, num_steps: int, budget: int | None) -> MethodConfig:
    """The method with its rounds or iterations decided; any other one as it is.

    Raises:
        ConfigError: the budget does not pay one.
    """
    match method:
        case NoiseSearchConfig(rounds=None):
            return decided(method, "rounds", DEFAULT_ROUNDS, num_steps, budget)
        case NoiseOptimizationConfig(iterations=None):
            return decided(method, "iterations", DEFAULT_ITERATIONS, num_steps, budget)
        case _:
            return method


def decided(
    method: NoiseMethod, key: str, default: int, num_steps: int, budget: int | None
) -> NoiseMethod:
    """`default` without a budget, else as many as it pays."""
    count = default if budget is None else affordable(method, num_steps, budget)
    if count == 0:
        what = f"{budget} evaluations, and {method.name} takes {price(method, num_steps, 1)}"
        raise ConfigError("CFG-BUDGET", "budget", what, "raise it, or take fewer steps")
    return method.model_copy(update={key: count})


def search_plan(
    generator: Generator, method: MethodConfig, sampler: SamplerConfig, *, seed: int
) -> Plan | None:
    """The plan of a search with fewer steps than the job; None where they are the same."""
    if not isinstance(method, NoiseSearchConfig) or method.search_steps is None:
        return None
    if method.search_steps == sampler.num_steps:
        return None
    fewer = sampler.model_copy(update={"num_steps": method.search_steps})
    return training_plan(generator, fewer, training_step=0, seed=seed)


def size_of(method: NoiseMethod) -> int:
    """Noises tried for a population; 1 where one noise is optimised."""
    if isinstance(method, NoiseOptimizationConfig):
        return 1
    return noises_tried(method, rounds_of(method))


def rounds_of(method: NoiseSearchConfig) -> int:
    """Rounds of a settled method."""
    assert method.rounds is not None, "settled before"
    return method.rounds


def settled_price(method: NoiseMethod, num_steps: int) -> int:
    """Network evaluations of one population of a settled method."""
    count = method.rounds if isinstance(method, NoiseSearchConfig) else method.iterations
    assert count is not None, "settled before"
    return price(method, num_steps, count)


def at_once(method: MethodConfig, particles: int) -> int:
    """Samples of a population that are drawn together."""
    if not isinstance(method, NoiseSearchConfig):
        return particles
    return method.neighbours * (method.survivors if method.kind == "paths" else 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """A chain whose requests are G owners, or tries of them, and who judges what it draws."""

    chain: PipelineChain
    judge: Judge

    def of(self, requests: Sequence[Request], owners: Tensor) -> Drawing:
        """The same for `requests` (n,), with the prompts of `owners` (n,)."""
        cond = self.chain.cond.select(owners)
        return Drawing(
            chain=replace(self.chain, requests=requests, cond=cond),
            judge=replace(self.judge, requests=requests),
        )

    def with_plan(self, plan: Plan) -> Drawing:
        """The same with another plan."""
        return Drawing(chain=replace(self.chain, plan=plan), judge=replace(self.judge, plan=plan))

    def numbered(self, tries: Tensor, total: int) -> Drawing:
        """Tries (G, n) of each owner's `total`: ids as best-of-N gives them to candidates."""
        requests = [
            replace(owner, sample_id=number, start_id=number)
            for owner, own in zip(self.chain.requests, tries.tolist(), strict=True)
            for number in (owner.sample_id * total + place for place in own)
        ]
        return self.of(requests, torch.arange(len(tries)).repeat_interleave(tries.shape[1]))

    def part(self, first: int, width: int, total: int) -> Drawing:
        """Tries `first`, ..., `first` + `width` - 1 of each owner."""
        places = torch.arange(first, first + width)
        return self.numbered(places.expand(len(self.chain.requests), width), total)

    def noise(self, stream: str = STREAM) -> Tensor:
        """Keyed noise (n, *S) of every request; initial noise unless `stream` is another."""
        shape, seed = self.chain.generator.latent_shape, self.chain.seed
        x = start_noise(shape, self.chain.requests, seed=seed, stream=stream)
        return x.to(device_of(self.chain.generator))

    def walked(self, x: Tensor, begin: int, end: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """States (n, *S) before step `end`, and the end that the network predicted last."""
        x0 = x
        for step in range(begin, end):
            pred = self.chain.predict(x, step, rows)
            x0, _ = self.chain.generator.path.split(x, pred, self.chain.plan.t[step])
            x, _ = self.chain.advance(x, pred, step, rows)
        return x, x0

    def drawn(self, noise: Tensor) -> Finish:
        """What noises (n, *S) become; n / G for each request, with its step noise."""
        own = torch.arange(len(self.chain.requests))
        rows = own.repeat_interleave(len(noise) // len(own))
        x, _ = self.walked(noise, 0, self.chain.num_steps, rows)
        return self.judge.finish(x, rows)

    def promised(self, x0: Tensor) -> Finish:
        """Predicted ends (n, *S), one for each request, decoded and scored."""
        owners = self.judge.requests
        media = self.judge.preview(x0, [owner.group for owner in owners])
        samples = as_samples(self.judge.generator, media, owners, seed=self.judge.seed)
        verdict, terms = self.judge.scored(samples)
        return Finish(verdict=verdict, samples=samples, terms=terms)


def searched(
    chain: PipelineChain,
    judge: Judge,
    method: NoiseSearchConfig,
    owners: Owners,
    *,
    plan: Plan | None,
) -> list[Population]:
    """Populations of noise search; `plan` is that of the search where it is not the chain's."""
    full = Drawing(chain=chain, judge=judge)
    short = full if plan is None else full.with_plan(plan)
    standing = by_ranks(judge.suite.weights) if method.combine == "rank" else by_reward
    match method.kind:
        case "random":
            found = random_kind(short, method, standing)
            winner = full.numbered(found.place[:, None], size_of(method))
        case "zero_order":
            found, winner = zero_order_kind(short, method, standing), full
        case "paths":
            found, winner = paths_kind(short, method, standing), full
    finish = found.finish if plan is None else winner.drawn(found.noise)
    return [
        population(finish, group, owner, size=1, history=rounds_json(found, group), returned="best")
        for group, owner in enumerate(owners)
    ]


def random_kind(drawing: Drawing, method: NoiseSearchConfig, standing: Standing) -> Found:
    """Rounds of fresh noises."""
    width, total = method.neighbours, size_of(method)

    def tries(number: int) -> Tensor:
        noise = drawing.part(number * width, width, total).noise()
        return noise.unflatten(0, (-1, width))

    def draw(noise: Tensor, number: int) -> Finish:
        return drawing.part(number * width, width, total).drawn(noise)

    return random_search(tries, draw, standing, rounds=rounds_of(method))


def zero_order_kind(drawing: Drawing, method: NoiseSearchConfig, standing: Standing) -> Found:
    """From the noise of the plain sample; its step noise, where there is one, stays."""
    width, total = method.neighbours, size_of(method)

    def tries(noise: Tensor, number: int) -> Tensor:
        draws = drawing.part(1 + number * width, width, total).noise(f"{STREAM}/neighbour")
        return neighbours(noise, draws.unflatten(0, (-1, width)), method.similarity)

    def draw(noise: Tensor, number: int) -> Finish:
        return drawing.drawn(noise)

    return zero_order(drawing.noise(), tries, draw, standing, rounds=rounds_of(method))


def paths_kind(drawing: Drawing, method: NoiseSearchConfig, standing: Standing) -> Found:
    """Partly noised samples drawn on anew; a round's tries have step noise of their own."""
    chain, survivors, total = drawing.chain, method.survivors, size_of(method)
    width = survivors * method.neighbours
    rounds = rounds_of(method)
    first, marks = path_marks(method, chain.num_steps, rounds)
    ends = [first, *(end for _, end in marks)]
    t, path = chain.plan.t, chain.generator.path
    begun = drawing.part(0, survivors, total)
    x, _ = begun.walked(begun.noise(), 0, first, torch.arange(len(begun.chain.requests)))

    def go_on(x: Tensor, number: int) -> tuple[Tensor, Finish]:
        again = drawing.part(survivors + number * width, width, total)
        copies = x.repeat_interleave(method.neighbours, dim=1).flatten(0, 1)
        begin, end = marks[number]
        noised = renoised(path, copies, again.noise(f"{STREAM}/paths"), t[ends[number]], t[begin])
        rows = torch.arange(len(copies))
        x, x0 = again.walked(noised, begin, end, rows)
        last = number + 1 == rounds
        finish = again.judge.finish(x, rows) if last else again.promised(x0)
        return x.unflatten(0, (-1, width)), finish

    return path_search(x.unflatten(0, (-1, survivors)), go_on, standing, rounds=rounds)


def rounds_json(found: Found, group: int) -> list[Mapping[str, Any]]:
    """The rounds of one group; `chosen` are places among the round's tries."""
    return [
        {
            "round": number,
            "reward": numbers(each.reward[group], each.valid[group]),
            "chosen": list(each.chosen[group]),
        }
        for number, each in enumerate(found.history)
    ]


def climbed(
    chain: PipelineChain, judge: Judge, method: NoiseOptimizationConfig, owners: Owners
) -> list[Population]:
    """Populations of noise optimisation: one noise each, from that of the plain sample."""
    assert not bool((chain.plan.noise > 0).any()), "refused before"
    assert method.iterations is not None, "settled before"
    ascent = Ascent(
        iterations=method.iterations,
        learning_rate=method.learning_rate,
        momentum=method.momentum,
        clip_norm=method.clip_norm,
        regularisation=method.regularisation,
    )
    noise, costs = chain.start(), chain.costs

    def draw(z: Tensor) -> Drawn:
        media = media_of(chain, z, checkpointing=method.checkpointing)
        samples = as_samples(chain.generator, media, chain.requests, seed=chain.seed)
        reward, valid = graded(judge.suite, samples)
        costs.decodes += len(z)
        costs.reward_calls += len(z) * len(judge.suite.names)
        return Drawn(reward=reward, valid=valid, media=media)

    def on_backward() -> None:
        costs.network_evaluations += BACKWARD * len(noise) * chain.num_steps

    climb = optimised(draw, noise, ascent, on_backward=on_backward)
    samples = as_samples(chain.generator, climb.media, chain.requests, seed=chain.seed)
    verdict, terms = judge.scored(samples)
    finish = Finish(verdict=verdict, samples=samples, terms=terms)
    return [
        population(
            finish, group, owner, size=1, history=iterations_json(climb, group), returned="all"
        )
        for group, owner in enumerate(owners)
    ]


def media_of(chain: PipelineChain, x: Tensor, *, checkpointing: bool) -> Tensor:
    """Media (n, ...) of noises (n, *S), one for each request, with the graph where it is on.

    With checkpointing a step's activations are computed anew in the backward pass, and no more
    than one step's are kept at a time.
    """
    rows = torch.arange(len(x))

    def step(x: Tensor, number: int) -> Tensor:
        return chain.advance(x, chain.predict(x, number, rows), number, rows)[0]

    for number in range(chain.num_steps):
        if checkpointing and torch.is_grad_enabled():
            # To its end: a pipeline's loop that is cut short would leave its scheduler as it is.
            with set_checkpoint_early_stop(False):
                x = checkpoint(step, x, number, use_reentrant=False)
        else:
            x = step(x, number)
    return chain.generator.decode(x.float()).float().cpu()


def iterations_json(climb: Climb, group: int) -> list[Mapping[str, Any]]:
    """The iterations of one noise."""
    return [
        {
            "iteration": number,
            "reward": numbers(each.reward[group : group + 1], each.valid[group : group + 1]),
            "objective": numbers(each.objective[group : group + 1])[0],
            "radius": float(each.radius[group]),
        }
        for number, each in enumerate(climb.history)
    ]
