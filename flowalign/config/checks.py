"""Values that are possible one by one and impossible together.

Each rule is one function that yields the problems it sees; none needs the model, so all of them
answer before torch is imported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

from flowalign.config.data_checks import data_rule
from flowalign.config.level_checks import levels_rule, whole_groups_rule
from flowalign.config.mix_checks import mixes_rule
from flowalign.config.model_sizes import autoencoder, spatial_factor, temporal_factor
from flowalign.config.monitor_checks import monitor_rule
from flowalign.config.noisy_reward import NoisyRewardConfig
from flowalign.config.problems import Problem
from flowalign.config.rules_checks import rules_rule
from flowalign.config.sampling import FirstKNoise, HiCoGenNoise, SamplerConfig, WindowNoise
from flowalign.config.schema import RunConfig
from flowalign.config.server_checks import served_rule
from flowalign.config.set_checks import exemplars_rule, sets_rule
from flowalign.config.shaping_checks import shaping_rule
from flowalign.config.steering import SteerConfig
from flowalign.config.suggest import did_you_mean
from flowalign.config.trajectory_checks import TRAJECTORY_RULES
from flowalign.config.vlm_checks import vlm_rule
from flowalign.config.yaml12 import KeyPath
from flowalign.worlds.shapes.scene import CATEGORIES

# What the rules of model, sampler and rewards have in common.
Drawing = RunConfig | SteerConfig | NoisyRewardConfig

CONFLICT = "CFG-CONFLICT"
DEVICE = re.compile(r"auto|cpu|mps|cuda(:[0-9]{1,3})?")
DEVICES = ("auto", "cpu", "cuda", "mps", "cuda:0")
SHAPES_PROMPTS = ("shapes:train", "shapes:heldout")
SINGLE_SAMPLES = ("ddpo", "sft", "rwr")  # algorithms that need no other sample of the same prompt
STOCHASTIC = ("grpo", "ddpo", "d3po")  # algorithms that learn from the noise of single steps
UNIT_INTERVAL_SAMPLERS = ("ddim", "cps")  # their noise level is a share of what the step can hold
PIPELINE_ARGUMENTS = {  # arguments of a pipeline's call that have a key of their own, or none
    "prompt": "prompts.train",
    "num_inference_steps": "sampler.num_steps",
    "guidance_scale": "model.guidance_scale",
    "height": "model.resolution",
    "width": "model.resolution",
    "num_frames": "model.num_frames",
    "generator": "seed",
}
OWN_ARGUMENTS = (
    "latents",
    "output_type",
    "return_dict",
    "callback_on_step_end",
    "sigmas",
    "timesteps",
)


def conflict(path: KeyPath, what: str, fix: str) -> Problem:
    """Two values of a config that exclude each other, told at one of them."""
    return Problem(path=path, code=CONFLICT, what=what, fix=fix)


def output_rule(config: Drawing) -> Iterator[Problem]:
    """The directory must be a path."""
    if not config.output.strip() or "\0" in config.output:
        what = "must be the path of a directory"
        yield conflict(("output",), what, "write for example `output: runs/first`")


def device_rule(config: Drawing) -> Iterator[Problem]:
    """A device that torch knows."""
    if not DEVICE.fullmatch(config.device):
        what = f"unknown device '{config.device}'"
        yield conflict(("device",), what, did_you_mean(config.device, DEVICES))


def _prompts(config: RunConfig) -> Iterator[Problem]:
    for name in ("train", "evaluation"):
        spec = getattr(config.prompts, name)
        path = ("prompts", name)
        if not spec or (isinstance(spec, str) and not spec.strip()):
            yield conflict(path, "names no prompts", f"use {SHAPES_PROMPTS[0]} or a file")
        elif isinstance(spec, str) and spec.startswith("shapes:") and spec not in SHAPES_PROMPTS:
            what = f"the shapes world has no prompts '{spec}'"
            yield conflict(path, what, did_you_mean(spec, SHAPES_PROMPTS))


def _groups(config: RunConfig) -> Iterator[Problem]:
    group, batch = config.rollout.group_size, config.rollout.batch_size
    if group < 2 and config.algorithm.name not in SINGLE_SAMPLES:
        what = (
            f"needs >= 2 with {config.algorithm.name}, got {group}: the advantage would always be 0"
        )
        yield conflict(("rollout", "group_size"), what, "8 to 24 samples of a prompt are usual")
    elif batch % group:
        what = f"{batch} is not a multiple of group_size {group}: groups stay together in a call"
        below, above = batch - batch % group, batch - batch % group + group
        near = f"{below} or {above}" if below else str(above)
        yield conflict(("rollout", "batch_size"), what, f"the nearest are {near}")


def _updates(config: RunConfig) -> Iterator[Problem]:
    updates = config.algorithm.updates_per_rollout
    samples = config.rollout.num_prompts * config.rollout.group_size
    if updates > samples:
        what = f"{updates} updates from a rollout of {samples} samples"
        yield conflict(("algorithm", "updates_per_rollout"), what, f"at most {samples}")
    total = config.train.steps * updates
    if config.train.warmup_steps > total:
        what = f"warm-up of {config.train.warmup_steps} updates in a run of {total}"
        yield conflict(("train", "warmup_steps"), what, f"at most {total}, or more train.steps")


def schedule_rule(config: Drawing) -> Iterator[Problem]:
    """The noise schedule must fit the number of steps."""
    noise, steps, path = config.sampler.noise, config.sampler.num_steps, ("sampler", "noise")
    if isinstance(noise, WindowNoise):
        if noise.size > steps:
            what = f"window larger than steps: {noise.size} > sampler.num_steps {steps}"
            yield conflict((*path, "size"), what, f"at most {steps}")
        elif noise.start + noise.size > steps:
            last = noise.start + noise.size - 1
            what = f"window {noise.start}..{last} passes the last step {steps - 1}"
            yield conflict((*path, "start"), what, f"at most {steps - noise.size}")
    if isinstance(noise, FirstKNoise) and noise.k > steps:
        what = f"noise in the first {noise.k} steps of {steps}"
        yield conflict((*path, "k"), what, f"at most sampler.num_steps {steps}")
    if isinstance(noise, HiCoGenNoise) and noise.eta_min > noise.eta_max:
        what = f"eta_min {noise.eta_min} > eta_max {noise.eta_max}: the rule of hicogen is to decay"
        yield conflict((*path, "eta_min"), what, f"at most eta_max {noise.eta_max}")


def unit_interval_rule(config: Drawing) -> Iterator[Problem]:
    """The noise level of some samplers is a share."""
    sampler = config.sampler
    if sampler.name in UNIT_INTERVAL_SAMPLERS and sampler.noise_level > 1:
        what = f"must be <= 1 for sampler {sampler.name}, got {sampler.noise_level}"
        yield conflict(("sampler", "noise_level"), what, "1 is the most noise a step can hold")


def _noise_level(config: RunConfig) -> Iterator[Problem]:
    sampler, algorithm = config.sampler, config.algorithm.name
    if algorithm not in STOCHASTIC:
        return
    reason = "no exploration: the log-prob of a deterministic step is undefined"
    if sampler.name == "ode":
        what = f"sampler ode with {algorithm}: {reason}"
        yield conflict(
            ("sampler", "name"), what, "use ddim, flow_sde, cps or dance, or algorithm nft"
        )
    elif sampler.noise_level == 0:
        what = f"0 with {algorithm}: {reason}"
        yield conflict(("sampler", "noise_level"), what, "0.3 to 1 is usual")
    elif not _has_stochastic_step(sampler):
        what = "the last step of a sampler is deterministic, and no other step has noise: " + reason
        yield conflict(("sampler", "num_steps"), what, "take more steps, or noise in earlier ones")


def _has_stochastic_step(sampler: SamplerConfig) -> bool:
    noise, last = sampler.noise, sampler.num_steps - 1
    if isinstance(noise, WindowNoise) and noise.move == "fixed":
        return noise.start < last
    return last > 0


def rewards_rule(config: Drawing) -> Iterator[Problem]:
    """Some reward counts, and names are unique."""
    shaping = config.shaping if isinstance(config, RunConfig) else None
    limited = shaping is not None and bool(shaping.constraints)  # these have multipliers instead
    if config.rewards and not limited and all(entry.weight == 0 for entry in config.rewards):
        what = "all weights are 0: no signal to learn from"
        yield conflict(
            ("rewards",), what, "give one reward a weight, or move it to held_out_rewards"
        )
    places = [
        ((section, index), entry.label or entry.name)
        for section, entries in (
            ("rewards", config.rewards),
            ("held_out_rewards", config.held_out_rewards),
        )
        for index, entry in enumerate(entries)
    ]
    counts, seen = Counter(name for _, name in places), set[str]()
    for path, name in places:
        if counts[name] > 1 and name in seen:
            what = f"duplicate name `{name}`: {counts[name]} rewards have it"
            yield conflict(path, what, "give one of them a `label` of its own")
        seen.add(name)


def hierarchy_rule(config: Drawing) -> Iterator[Problem]:
    """A hierarchical reward has a level that counts."""
    for section, entries in (
        ("rewards", config.rewards),
        ("held_out_rewards", config.held_out_rewards),
    ):
        for index, entry in enumerate(entries):
            if entry.name == "shapes" and entry.mode == "hierarchical":
                weights = (entry.global_weight, entry.subject_weight, entry.relation_weight)
                if not any(weights):
                    what = "all three level weights are 0: no signal"
                    yield conflict((section, index, "mode"), what, "give one level a weight")


def call_rule(config: Drawing) -> Iterator[Problem]:
    """Arguments of the call that have a key of their own."""
    for name in config.model.call:
        if name in PIPELINE_ARGUMENTS:
            what = f"`{name}` has a key of its own"
            yield conflict(
                ("model", "call", name), what, f"set `{PIPELINE_ARGUMENTS[name]}` instead"
            )
        elif name in OWN_ARGUMENTS:
            what = f"`{name}` is given by flowalign at every call"
            yield conflict(("model", "call", name), what, "remove it")


def sizes_rule(config: Drawing) -> Iterator[Problem]:
    """Sizes must suit the autoencoder."""
    model = config.model
    if model.resolution is None and model.num_frames is None:
        return
    settings = autoencoder(model.name)
    factor = spatial_factor(settings)
    if model.resolution is not None and factor is not None and model.resolution % factor:
        low = model.resolution // factor * factor
        near = "/".join(str(n) for n in (low, low + factor) if n)
        what = f"{model.resolution} must be a multiple of {factor}, the autoencoder's factor"
        yield conflict(("model", "resolution"), what, f"nearest {near}")
    factor = temporal_factor(settings)
    if model.num_frames is not None and factor is not None and (model.num_frames - 1) % factor:
        low = (model.num_frames - 1) // factor * factor + 1
        what = f"{model.num_frames} must be {factor}n+1 for this autoencoder"
        yield conflict(("model", "num_frames"), what, f"allowed {low} or {low + factor}")


def _precision(config: RunConfig) -> Iterator[Problem]:
    if config.lora is None and config.model.dtype != "fp32":
        dtype = config.model.dtype
        what = f"{dtype}, but all weights are trained (`lora: null`) and those are fp32"
        fix = "write fp32 and `train.mixed_precision: bf16`, or train a LoRA"
        yield conflict(("model", "dtype"), what, fix)


def categories_rule(config: Drawing) -> Iterator[Problem]:
    """Categories of the shapes world."""
    for index, name in enumerate(config.prompts.categories):
        if name not in CATEGORIES:
            what = f"unknown category '{name}'"
            path = ("prompts", "categories", index)
            yield conflict(path, what, f"allowed: {', '.join(CATEGORIES)}")


RULES: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    output_rule,
    device_rule,
    _prompts,
    _groups,
    _updates,
    schedule_rule,
    unit_interval_rule,
    _noise_level,
    *TRAJECTORY_RULES,
    data_rule,
    rewards_rule,
    hierarchy_rule,
    served_rule,
    rules_rule,
    vlm_rule,
    sets_rule,
    shaping_rule,
    mixes_rule,
    monitor_rule,
    levels_rule,
    whole_groups_rule,
    exemplars_rule,
    call_rule,
    sizes_rule,
    _precision,
    categories_rule,
)
