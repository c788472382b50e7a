"""A steering job from its config: every part once, then the method, then what is held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from flowalign.config.compare_checks import entries
from flowalign.config.schema import PromptsConfig
from flowalign.config.steering import MethodConfig, SteerConfig, SteerPromptsConfig
from flowalign.errors import ConfigError, ProcessError
from flowalign.evaluation import chosen_prompts
from flowalign.lora import merged_lora
from flowalign.lora_files import import_lora
from flowalign.pipelines.load import load_pipeline, make_generator
from flowalign.processes import Processes, start_processes
from flowalign.prompt_lengths import check_lengths
from flowalign.prompts import Prompt, read_prompts
from flowalign.protocols import Generator
from flowalign.rollout import Plan, PromptCache, device_of, training_plan
from flowalign.scoring import RewardSuite, build_suite
from flowalign.steering.costs import Costs
from flowalign.steering.gradient_cases import follows_gradients
from flowalign.steering.methods import Parts, particles_of, populations
from flowalign.steering.noise_cases import search_plan, settled
from flowalign.steering.noisy_guidance import Loaded, noisy_rewards
from flowalign.steering.outcome import Population, Steered
from flowalign.steering.reward_gradients import check_differentiable
from flowalign.types import Sample


@dataclass(frozen=True, kw_only=True, slots=True)
class SteeringSession:
    """The parts of one job."""

    config: SteerConfig
    generator: Generator
    prompts: list[Prompt]
    suite: RewardSuite  # steers
    held_out: RewardSuite  # scores what is returned
    cache: PromptCache
    noisy_rewards: Mapping[str, Loaded] = field(default_factory=dict)  # by folder


def assemble_steering(
    config: SteerConfig, *, allow_code: Sequence[str] = (), pipe: DiffusionPipeline | None = None
) -> SteeringSession:
    """Build all parts; `pipe` replaces `config.model` by a pipeline the caller already has."""
    processes = start_processes(config.device, "no")
    check_alone(processes)
    prompts = prompts_of(config)
    suite, held_out = rewards_of(config, allow_code=allow_code, device=processes.device)
    for entry in entries(config):
        if follows_gradients(entry.method):
            check_differentiable(suite, entry.method.name)
    if pipe is None:
        pipe = load_pipeline(config.model, processes.device)
    if config.lora is not None:
        import_lora(pipe, config.lora.init_from)
    texts = [prompt.text for prompt in prompts]
    check_lengths(pipe, config.model, texts, strict=config.prompts.strict_length)
    generator = make_generator(pipe, config.model)
    return SteeringSession(
        config=config,
        generator=generator,
        prompts=prompts,
        suite=suite,
        held_out=held_out,
        cache=PromptCache(generator),
        noisy_rewards=noisy_rewards(config, generator),
    )


def check_alone(processes: Processes, command: str = "flowalign steer") -> None:
    """Steering, and what prepares it, runs in one process."""
    if processes.count > 1:
        raise ProcessError(
            "PROC-STEER",
            command,
            f"{processes.count} processes, and it uses one",
            "start it without torchrun; give every process its own prompts and output",
        )


def prompts_of(config: SteerConfig) -> list[Prompt]:
    """The prompts of a job; a limited number are those that a training run evaluates."""
    return read_steer_prompts(config.prompts, config.seed)


def read_steer_prompts(settings: SteerPromptsConfig, seed: int) -> list[Prompt]:
    """The prompts of a section, limited by the seed."""
    reading = PromptsConfig(
        categories=settings.categories,
        duplicates=settings.duplicates,
        allow_empty_prompt=settings.allow_empty_prompt,
    )
    prompts = read_prompts(settings.source, config=reading, origin="prompts.source")
    if settings.num_prompts is None:
        return prompts
    return chosen_prompts(prompts, settings.num_prompts, seed, "evaluation prompts")


def rewards_of(
    config: SteerConfig, *, allow_code: Sequence[str], device: torch.device
) -> tuple[RewardSuite, RewardSuite]:
    """The rewards that steer, and those that only score.

    Raises:
        ConfigError: a reward compares samples of one population, and a prompt has several.
    """
    options = {
        "allow_code": allow_code,
        "device": device,
        "failure": config.reward_failure,
        "timeout_s": config.reward_timeout_s,
    }
    suite = build_suite(config.rewards, **options)
    for entry in suite.entries:
        if entry.reward.group_only and config.samples_per_prompt > 1:
            what = f"`{entry.label}` compares the samples of a prompt, and populations would mix"
            fix = "use samples_per_prompt: 1, with another seed for every repetition"
            raise ConfigError("CFG-CONFLICT", "samples_per_prompt", what, fix)
    return suite, build_suite(config.held_out_rewards, **options)


@torch.no_grad()
def run_method(
    session: SteeringSession,
    method: MethodConfig,
    *,
    budget: int | None,
    label: str | None = None,
    on_chunk: Callable[[Sequence[Population]], None] | None = None,
) -> Steered:
    """All prompts by one method, with the held-out scores of what is returned."""
    config, costs, plan = session.config, Costs(), plan_of(session)
    method = settled(method, len(plan.noise), budget)
    parts = Parts(
        generator=session.generator,
        plan=plan,
        cache=session.cache,
        suite=session.suite,
        seed=config.seed,
        batch_size=config.batch_size,
        costs=costs,
        search_plan=search_plan(session.generator, method, config.sampler, seed=config.seed),
        noisy_rewards=session.noisy_rewards,
    )
    particles = particles_of(method, plan, budget)
    with adapter_view(session), costs.measured(device_of(session.generator)):
        found = list(
            populations(
                parts,
                method,
                session.prompts,
                particles=particles,
                samples_per_prompt=config.samples_per_prompt,
                on_chunk=on_chunk,
            )
        )
    return Steered(
        label=label or method.name,
        method=method.name,
        budget=budget,
        particles=particles,
        populations=found,
        scores=scores_of(session, found),
        costs=costs,
    )


def plan_of(session: SteeringSession) -> Plan:
    """The levels and noise that all methods of the job share."""
    config = session.config
    return training_plan(session.generator, config.sampler, training_step=0, seed=config.seed)


def adapter_view(session: SteeringSession):
    """An adapter added into the weights, which saves its passes and is exact in float32 only."""
    config = session.config
    if config.lora is None or config.model.dtype != "fp32":
        return nullcontext()
    return merged_lora(session.generator.denoisers())


def scores_of(session: SteeringSession, found: Sequence[Population]) -> dict[str, Tensor]:
    """Every score of what is returned, (m,) each; NaN where not valid."""
    scores = {
        name: torch.cat([group.terms[name][list(group.returned)] for group in found])
        for name in session.suite.names
    }
    if session.held_out.names:
        samples = [group.samples[place] for group in found for place in group.returned]
        scores.update(held_out_scores(session, samples))
    return scores


def held_out_scores(session: SteeringSession, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Scores by the rewards that do not steer."""
    size = session.config.batch_size
    parts = [
        session.held_out.score(samples[start : start + size]).terms
        for start in range(0, len(samples), size)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in session.held_out.names}
