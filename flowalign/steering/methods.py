"""The methods by name: from a section of the config to populations.

Prompts are taken in chunks of whole populations that fill a network call; a population larger than
a call is cut into several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flowalign.config.flow_nrg import FlowNRGConfig
from flowalign.config.gradient_methods import GuidanceConfig
from flowalign.config.noise_methods import NoiseOptimizationConfig, NoiseSearchConfig
from flowalign.config.steering import (
    BestOfNConfig,
    FKConfig,
    MethodConfig,
    NoneConfig,
    SVDDConfig,
)
from flowalign.config.steering import (
    Preview as PreviewName,
)
from flowalign.errors import ConfigError
from flowalign.prompts import Prompt
from flowalign.protocols import Generator
from flowalign.rollout import Plan, PromptCache, Request
from flowalign.scoring import RewardSuite
from flowalign.steering import best_of_n, gradient_cases, noise_cases, svdd
from flowalign.steering.chain import PipelineChain
from flowalign.steering.costs import Costs
from flowalign.steering.feynman_kac import Steering, feynman_kac
from flowalign.steering.gradient_cases import extra_evaluations, twisted
from flowalign.steering.judges import Judge
from flowalign.steering.learned_value import learned_value
from flowalign.steering.noisy_guidance import Loaded, guided_chain
from flowalign.steering.outcome import Population
from flowalign.steering.populations import of_contest, of_descent, of_outcome
from flowalign.steering.potentials import POTENTIALS
from flowalign.steering.previews import Decoded, LinearPreview, Preview
from flowalign.steering.protocols import Proposal, Value
from flowalign.steering.resampling import SCHEMES
from flowalign.steering.schedule import halving_steps, look_steps

DEFAULT_PARTICLES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What every method works with."""

    generator: Generator
    plan: Plan
    cache: PromptCache
    suite: RewardSuite
    seed: int
    batch_size: int
    costs: Costs
    proposal: Proposal | None = None
    search_plan: Plan | None = None  # where noises are searched with fewer steps
    noisy_rewards: Mapping[str, Loaded] = field(default_factory=dict)  # by folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Whose population: a prompt's repetition, with its number among all."""

    prompt: Prompt
    repeat: int
    number: int


def populations(
    parts: Parts,
    method: MethodConfig,
    prompts: Sequence[Prompt],
    *,
    particles: int,
    samples_per_prompt: int,
    on_chunk: Callable[[Sequence[Population]], None] | None = None,
) -> Iterator[Population]:
    """The populations of all prompts and repetitions, in their order.

    `on_chunk` hears of every chunk when it is done.
    """
    owners = [
        Owner(prompt=prompt, repeat=repeat, number=place * samples_per_prompt + repeat)
        for place, prompt in enumerate(prompts)
        for repeat in range(samples_per_prompt)
    ]
    size = max(1, parts.batch_size // noise_cases.at_once(method, particles))
    for start in range(0, len(owners), size):
        done = run_chunk(parts, method, owners[start : start + size], particles)
        if on_chunk is not None:
            on_chunk(done)
        yield from done


def run_chunk(
    parts: Parts, method: MethodConfig, owners: Sequence[Owner], particles: int
) -> list[Population]:
    """One chunk of populations, walked together."""
    groups = len(owners)
    prompts = [(owner.prompt, owner.repeat) for owner in owners]
    match method:
        case NoneConfig():
            chain, judge = walkers(parts, owners, particles, "decode")
            ended = best_of_n.best_of_n(chain, judge, (), groups=groups, candidates=1)
            return of_contest(ended, prompts, returned="all")
        case BestOfNConfig():
            chain, judge = walkers(parts, owners, particles, method.preview)
            steps = halvings_of(method, parts.plan)
            ended = best_of_n.best_of_n(chain, judge, steps, groups=groups, candidates=particles)
            return of_contest(ended, prompts, returned=method.output)
        case FKConfig():
            chain, judge = walkers(parts, owners, particles, method.preview)
            steering = steering_of(method, parts.plan)
            if method.proposal == "gradient":
                outcome = twisted(chain, judge, steering, groups=groups, particles=particles)
            else:
                value = value_of(parts, chain, judge, method)
                outcome = feynman_kac(chain, value, steering, groups=groups, particles=particles)
            return of_outcome(outcome, prompts, returned=method.output, seed=parts.seed)
        case SVDDConfig():
            chain, judge = walkers(parts, owners, particles, method.preview, one_start=True)
            ended = svdd.svdd(
                chain,
                value_of(parts, chain, judge, method),
                noisy_steps(parts.plan),
                strength=method.strength,
                groups=groups,
                candidates=particles,
            )
            return of_descent(ended, prompts)
        case GuidanceConfig():
            chain, judge = walkers(parts, owners, particles, "decode")
            ended = gradient_cases.guided(chain, judge, method, groups=groups, candidates=particles)
            return of_contest(ended, prompts, returned="best" if particles > 1 else "all")
        case NoiseSearchConfig():
            chain, judge = walkers(parts, owners, 1, "decode")
            return noise_cases.searched(chain, judge, method, prompts, plan=parts.search_plan)
        case NoiseOptimizationConfig():
            chain, judge = walkers(parts, owners, 1, "decode")
            return noise_cases.climbed(chain, judge, method, prompts)
        case FlowNRGConfig():
            chain, judge = walkers(parts, owners, particles, "decode")
            guided = guided_chain(chain, method, parts.noisy_rewards[method.reward])
            ended = best_of_n.best_of_n(guided, judge, (), groups=groups, candidates=particles)
            return of_contest(ended, prompts, returned="best")


def walkers(
    parts: Parts,
    owners: Sequence[Owner],
    particles: int,
    preview: PreviewName,
    *,
    one_start: bool = False,
) -> tuple[PipelineChain, Judge]:
    """The chain of the owners' particles, and who judges them.

    A particle's id is repeat x particles + its place. With `one_start` a population begins from
    the noise of the plain sample of its repetition.
    """
    requests = [
        Request(
            prompt=owner.prompt.text,
            prompt_id=owner.prompt.prompt_id,
            sample_id=owner.repeat * particles + place,
            start_id=owner.repeat if one_start else owner.repeat * particles + place,
            group=owner.number,
        )
        for owner in owners
        for place in range(particles)
    ]
    chain = PipelineChain(
        generator=parts.generator,
        plan=parts.plan,
        cond=parts.cache.conditions([request.prompt for request in requests]),
        requests=requests,
        particles=particles,
        seed=parts.seed,
        batch_size=parts.batch_size,
        costs=parts.costs,
        proposal=parts.proposal,
    )
    judge = Judge(
        generator=parts.generator,
        plan=parts.plan,
        requests=requests,
        suite=parts.suite,
        preview=preview_of(parts, preview),
        seed=parts.seed,
        batch_size=parts.batch_size,
        costs=parts.costs,
    )
    return chain, judge


def value_of(
    parts: Parts, chain: PipelineChain, judge: Judge, method: FKConfig | SVDDConfig
) -> Value:
    """Who judges states on their way: the rewards of predicted ends, or a network."""
    if method.learned is None:
        return judge
    return learned_value(chain, judge, method.learned, parts.noisy_rewards[method.learned.reward])


def preview_of(parts: Parts, name: PreviewName) -> Preview:
    """The preview that a config names, new for every chunk."""
    decode = Decoded(generator=parts.generator, batch_size=parts.batch_size, costs=parts.costs)
    return decode if name == "decode" else LinearPreview(decode=decode)


def steering_of(method: FKConfig, plan: Plan) -> Steering:
    """The engine's settings of a config's section."""
    return Steering(
        strength=method.strength,
        potential=POTENTIALS[method.potential],
        scheme=SCHEMES[method.resampling],
        looks=look_steps(plan.noise, method.looks, start=method.start, stop=method.stop),
        ess_threshold=method.ess_threshold,
        tempering=method.tempering,
    )


def noisy_steps(plan: Plan) -> list[bool]:
    """Which steps of the plan have noise."""
    return (plan.noise > 0).tolist()


def halvings_of(method: BestOfNConfig, plan: Plan) -> tuple[int, ...]:
    """Steps before which candidates are dropped."""
    return halving_steps(len(plan.noise), method.halvings, start=method.start, stop=method.stop)


def evaluations(method: MethodConfig, plan: Plan, particles: int) -> int:
    """Network evaluations of one population."""
    match method:
        case BestOfNConfig():
            steps = halvings_of(method, plan)
            return best_of_n.evaluations(particles, len(plan.noise), steps)
        case SVDDConfig():
            return svdd.evaluations(particles, noisy_steps(plan))
        case NoiseSearchConfig() | NoiseOptimizationConfig():
            return noise_cases.settled_price(method, len(plan.noise))
        case _:
            return particles * (len(plan.noise) + extra_evaluations(method, plan))


def particles_of(method: MethodConfig, plan: Plan, budget: int | None) -> int:
    """Particles of a population: as given, as many as `budget` pays, or 4 (1 with flow_nrg).

    Raises:
        ConfigError: the budget does not pay one.
    """
    given = given_particles(noise_cases.settled(method, len(plan.noise), budget))
    if given is not None:
        return given
    if budget is None:
        return 1 if isinstance(method, FlowNRGConfig | GuidanceConfig) else DEFAULT_PARTICLES
    if evaluations(method, plan, 1) > budget:
        what = f"{budget} evaluations, and one sample takes {evaluations(method, plan, 1)}"
        raise ConfigError("CFG-BUDGET", "budget", what, "raise it, or take fewer steps")
    count = 1
    while evaluations(method, plan, count + 1) <= budget:
        count += 1
    return count


def given_particles(method: MethodConfig) -> int | None:
    """What the config says; None when it leaves it open."""
    match method:
        case NoneConfig():
            return 1
        case FKConfig():
            return method.particles
        case BestOfNConfig() | SVDDConfig() | FlowNRGConfig() | GuidanceConfig():
            return method.candidates
        case NoiseSearchConfig() | NoiseOptimizationConfig():
            return noise_cases.size_of(method)
