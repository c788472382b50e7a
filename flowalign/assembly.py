"""Building a run from its config: every part once, everything checked before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from flowalign.algorithms import algorithm as algorithm_named
from flowalign.attention.kernels import require
from flowalign.attention.shim import attention_of
from flowalign.config.rewards import RecordedReward
from flowalign.config.schema import RunConfig
from flowalign.config.shaping import ShapingConfig
from flowalign.data.cache import PromptStore, Store, key_of
from flowalign.data.dataset import Dataset, load_dataset
from flowalign.data.source import DataSource
from flowalign.errors import DataError
from flowalign.evaluation import chosen_prompts
from flowalign.lora_files import import_lora
from flowalign.mixtures import check_ranges
from flowalign.pipelines.guidance import DetachedGuidance
from flowalign.pipelines.load import load_pipeline, make_generator
from flowalign.pipelines.proof import prove_adapter
from flowalign.policy import TrainedPolicy, copied, full_policy, lora_policy
from flowalign.processes import Processes
from flowalign.prompt_lengths import check_lengths
from flowalign.prompts import Prompt, read_prompts, warn_overlap
from flowalign.protocols import Algorithm, Generator
from flowalign.rollout import PromptCache
from flowalign.samplers import sampler as sampler_named
from flowalign.scoring import RewardSuite, build_suite
from flowalign.shaping import resolved
from flowalign.training_state import Progress, TrainingState
from flowalign.update import adamw


@dataclass(kw_only=True, slots=True)
class Session:
    """The parts of one run."""

    config: RunConfig
    processes: Processes
    pipe: DiffusionPipeline
    generator: Generator
    evaluation_generator: Generator
    policy: TrainedPolicy
    algorithm: Algorithm
    state: TrainingState
    train_prompts: list[Prompt]
    evaluation_prompts: list[Prompt]
    train_rewards: RewardSuite
    all_rewards: RewardSuite  # trained and held out
    weights: dict[str, float]
    cache: PromptCache
    evaluation_cache: PromptCache
    source: DataSource | None = None  # in the place of rollouts
    shaping: ShapingConfig | None = None  # with every range written out

    @property
    def total_updates(self) -> int:
        return self.config.train.steps * self.algorithm.num_updates


def prompts_of(
    config: RunConfig, dataset: Dataset | None = None
) -> tuple[list[Prompt], list[Prompt]]:
    """Training prompts (limited by the seed) and the evaluation's choice of held-out ones."""
    settings = config.prompts
    if dataset is None:
        train = read_prompts(settings.train, config=settings, origin="prompts.train")
    else:
        texts = enumerate(dataset.prompts)
        train = [Prompt(text=text, category=None, prompt_id=i) for i, text in texts]
    held_out = read_prompts(settings.evaluation, config=settings, origin="prompts.evaluation")
    warn_overlap(train, held_out, strict=settings.strict_split)
    wanted = config.evaluation.num_prompts
    chosen = chosen_prompts(held_out, wanted, config.seed, "evaluation prompts")
    if dataset is not None:
        return train, chosen
    if settings.max_train is not None:
        train = chosen_prompts(train, settings.max_train, config.seed, "train prompts")
    if len(train) < config.rollout.num_prompts:
        raise DataError(
            "DATA-FEW",
            "prompts.train",
            f"{len(train)} prompts for rollout.num_prompts {config.rollout.num_prompts}",
            "lower rollout.num_prompts or add prompts",
        )
    return train, chosen


def rewards_of(
    config: RunConfig, *, allow_code: Sequence[str], device: torch.device
) -> tuple[RewardSuite, RewardSuite, dict[str, float]]:
    """The trained rewards, trained and held-out together, and the weights by term."""
    options = {
        "allow_code": allow_code,
        "device": device,
        "failure": config.reward_failure,
        "timeout_s": config.reward_timeout_s,
    }
    trained = build_suite(config.rewards, **options)
    # What people said of training samples says nothing of evaluation's, under the same keys.
    known = [reward for reward in config.rewards if not isinstance(reward, RecordedReward)]
    everything = build_suite((*known, *config.held_out_rewards), **options)
    return trained, everything, trained.weights


def assemble(
    config: RunConfig,
    *,
    processes: Processes,
    allow_code: Sequence[str] = (),
    pipe: DiffusionPipeline | None = None,
) -> Session:
    """Build all parts; `pipe` replaces `config.model` by a pipeline the caller already has."""
    device = processes.device
    require(config.model.attention, device)
    dataset = None
    if config.data is not None:
        dataset = load_dataset(config.data, config.rollout, config.seed)
    train_prompts, evaluation_prompts = prompts_of(config, dataset)
    train_rewards, all_rewards, weights = rewards_of(config, allow_code=allow_code, device=device)
    if pipe is None:
        pipe = load_pipeline(config.model, device)
    texts = [prompt.text for prompt in (*train_prompts, *evaluation_prompts)]
    check_lengths(pipe, config.model, texts, strict=config.prompts.strict_length)
    generator, evaluation_generator = generators_of(config, pipe, processes)
    policy = build_policy(config, generator, pipe)
    algorithm = algorithm_named(
        config.algorithm, sampler_named(config.sampler.name), generator.path
    )
    replays = config.train.exact_speedups and algorithm.needs.states
    if replays and isinstance(generator, DetachedGuidance):
        policy.listening = generator.listening
    if algorithm.needs.old:
        policy.old_weights = copied(policy.parameters)
    state = TrainingState(
        parameters=policy.parameters,
        optimizer=adamw(policy, config.train),
        ema=copied(policy.parameters) if config.train.ema_decay is not None else None,
        old=policy.old_weights,
        progress=Progress(),
    )
    cache = prompt_cache(config, generator)
    same = evaluation_generator is generator
    source = None
    if dataset is not None:
        source = source_of(config, dataset, generator, cache, processes)
    return Session(
        config=config,
        processes=processes,
        pipe=pipe,
        generator=generator,
        evaluation_generator=evaluation_generator,
        policy=policy,
        algorithm=algorithm,
        state=state,
        train_prompts=train_prompts,
        evaluation_prompts=evaluation_prompts,
        train_rewards=train_rewards,
        all_rewards=all_rewards,
        weights=weights,
        cache=cache,
        evaluation_cache=cache if same else PromptCache(evaluation_generator),
        source=source,
        shaping=shaping_of(config, train_rewards),
    )


def shaping_of(config: RunConfig, suite: RewardSuite) -> ShapingConfig | None:
    """The config's shaping, with the ranges that the rewards themselves tell."""
    if config.shaping is None:
        return None
    ranges = {entry.label: entry.reward.score_range for entry in suite.entries}
    check_ranges(config.shaping.mixes, ranges)
    return resolved(config.shaping, ranges, suite.weights)


def prompt_cache(config: RunConfig, generator: Generator) -> PromptCache:
    """Encoded prompts in memory, and on disk where data have a cache."""
    if config.data is None or config.data.cache is None:
        return PromptCache(generator)
    # Prompts are encoded under autocast, so its type is part of what embeddings depend on.
    name = key_of(generator.text_fingerprint(), config.train.mixed_precision)
    store = Store(folder=Path(config.data.cache) / "prompts", fingerprint=name)
    return PromptCache(generator, encode=PromptStore(generator, store).encode)


def source_of(
    config: RunConfig,
    dataset: Dataset,
    generator: Generator,
    prompts: PromptCache,
    processes: Processes,
) -> DataSource:
    """The source of a run that learns from data."""
    assert config.data is not None, "a data set comes from `data:`"
    store = None
    if config.data.cache is not None:
        folder = Path(config.data.cache) / "latents"
        store = Store(folder=folder, fingerprint=generator.media_fingerprint())
    return DataSource(
        dataset=dataset,
        config=config.data,
        generator=generator,
        prompts=prompts,
        processes=processes,
        seed=config.seed,
        dtype=torch.float32 if config.rollout.latent_dtype == "fp32" else torch.bfloat16,
        store=store,
    )


def generators_of(
    config: RunConfig, pipe: DiffusionPipeline, processes: Processes
) -> tuple[Generator, Generator]:
    """The generator of rollout and update, and the one with the evaluation's guidance."""

    def autocast() -> AbstractContextManager[None]:
        return processes.accelerator.autocast()

    generator: Generator = make_generator(pipe, config.model, autocast=autocast)
    if config.train.guidance_gradient == "conditional":
        generator = DetachedGuidance(generator, without_graph=config.train.exact_speedups)
    guidance = config.evaluation.guidance_scale
    if guidance is None or guidance == config.model.guidance_scale:
        return generator, generator
    # The denoiser is the same, so its attention kernel must not be chosen a second time.
    kernel = attention_of(generator.denoisers())
    other = config.model.model_copy(update={"guidance_scale": guidance, "attention": kernel})
    return generator, make_generator(pipe, other, autocast=autocast)


def build_policy(config: RunConfig, generator: Generator, pipe: DiffusionPipeline) -> TrainedPolicy:
    """LoRA or full weights, with gradient checkpointing where asked for."""
    if config.train.gradient_checkpointing:
        for module in generator.denoisers():
            module.enable_gradient_checkpointing()  # type: ignore[operator]
    if config.lora is None:
        return full_policy(generator)
    # Merged weights round differently from separate ones below float32, so only there.
    exact = config.train.mixed_precision == "no" and config.model.dtype == "fp32"
    merge = config.train.exact_speedups and exact
    policy = lora_policy(generator, config.lora, seed=config.seed, merge=merge)
    prove_adapter(generator)
    if config.lora.init_from is not None:
        import_lora(pipe, config.lora.init_from)
    return policy
