"""Values of a steering job that are possible one by one and impossible together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flowalign.config.checks import (
    SHAPES_PROMPTS,
    call_rule,
    categories_rule,
    conflict,
    device_rule,
    hierarchy_rule,
    output_rule,
    rewards_rule,
    schedule_rule,
    sizes_rule,
    unit_interval_rule,
)
from flowalign.config.compare_checks import compare_rule, every_method
from flowalign.config.flow_nrg import FlowNRGConfig
from flowalign.config.gradient_checks import GRADIENT_RULES
from flowalign.config.learned_value import LearnedValueConfig
from flowalign.config.noise_checks import NOISE_RULES
from flowalign.config.noise_methods import NoiseOptimizationConfig, NoiseSearchConfig
from flowalign.config.noisy_card import read_card
from flowalign.config.problems import Problem
from flowalign.config.rules_checks import rules_rule
from flowalign.config.server_checks import served_rule
from flowalign.config.set_checks import exemplars_rule, no_sets_rule
from flowalign.config.steering import (
    BestOfNConfig,
    FKConfig,
    NoneConfig,
    SteerConfig,
    SVDDConfig,
)
from flowalign.config.suggest import did_you_mean
from flowalign.config.trajectory_checks import no_recorded_rule
from flowalign.config.vlm_checks import vlm_rule
from flowalign.errors import CheckpointError


def _prompts(config: SteerConfig) -> Iterator[Problem]:
    spec, path = config.prompts.source, ("prompts", "source")
    if not spec or (isinstance(spec, str) and not spec.strip()):
        yield conflict(path, "names no prompts", f"use {SHAPES_PROMPTS[1]} or a file")
    elif isinstance(spec, str) and spec.startswith("shapes:") and spec not in SHAPES_PROMPTS:
        what = f"the shapes world has no prompts '{spec}'"
        yield conflict(path, what, did_you_mean(spec, SHAPES_PROMPTS))


def _noise(config: SteerConfig) -> Iterator[Problem]:
    method, sampler = config.method, config.sampler
    if not isinstance(method, FKConfig | SVDDConfig):
        return
    reason = f"{method.name} needs noise: equal particles would stay equal"
    if sampler.name == "ode":
        what = f"sampler ode with {reason}"
        yield conflict(("sampler", "name"), what, "use ddim, flow_sde, cps or dance")
    elif sampler.noise_level == 0:
        yield conflict(("sampler", "noise_level"), reason, "0.5 to 1 is usual")
    elif sampler.num_steps < 2:
        what = f"the last step has no noise, and {reason}"
        yield conflict(("sampler", "num_steps"), what, "take at least 2 steps")


def _looks(config: SteerConfig) -> Iterator[Problem]:
    method = config.method
    if isinstance(method, FKConfig | BestOfNConfig) and method.start > method.stop:
        what = f"start {method.start:g} is after stop {method.stop:g}"
        yield conflict(("method", "start"), what, f"at most {method.stop:g}")


def _tempering(config: SteerConfig) -> Iterator[Problem]:
    method = config.method
    if not isinstance(method, FKConfig) or method.tempering is None:
        return
    if method.tempering >= method.ess_threshold:
        what = (
            f"{method.tempering:g} is not below ess_threshold {method.ess_threshold:g}: nothing "
            "would be resampled, and lambda could not rise again"
        )
        yield conflict(("method", "tempering"), what, "raise ess_threshold, for example to 1")


def _budget(config: SteerConfig) -> Iterator[Problem]:
    method, budget = config.method, config.budget
    if budget is None or isinstance(method, NoiseSearchConfig | NoiseOptimizationConfig):
        return
    if isinstance(method, NoneConfig):
        what = "method none takes one sample, whatever the budget"
        yield conflict(("budget",), what, "remove it, or choose another method")
        return
    name = "particles" if isinstance(method, FKConfig) else "candidates"
    given = method.particles if isinstance(method, FKConfig) else method.candidates
    if given is not None:
        what = f"{given} is given, and budget {budget} decides it as well"
        yield conflict(("method", name), what, "keep one of the two")
    if budget < config.sampler.num_steps:
        what = f"{budget} evaluations are not enough for one sample"
        yield conflict(("budget",), what, f"at least sampler.num_steps {config.sampler.num_steps}")


def _noisy_reward(config: SteerConfig) -> Iterator[Problem]:
    method = config.method
    if isinstance(method, FlowNRGConfig):
        if method.stop > method.start:
            what = f"level {method.start:g} is below stop {method.stop:g}, so no level is guided"
            yield conflict(("method", "start"), what, f"at least {method.stop:g}; 1 is noise")
        yield from _heads(method, ("method",))
    elif isinstance(method, FKConfig | SVDDConfig) and method.learned is not None:
        yield from _heads(method.learned, ("method", "learned"))
        if method.preview != "decode":
            what = f"{method.preview}, and a learned value needs no preview"
            yield conflict(("method", "preview"), what, "remove it")


def _heads(section: FlowNRGConfig | LearnedValueConfig, path: tuple[str, ...]) -> Iterator[Problem]:
    try:
        names = read_card(section.reward).names
    except CheckpointError as error:
        yield conflict((*path, "reward"), f"{error.where}: {error.what}", error.fix)
        return
    for name in section.weights:
        if name not in names:
            what = f"the reward `{section.reward}` has no head `{name}`"
            yield conflict((*path, "weights", name), what, did_you_mean(name, names))


RULES: tuple[Callable[[SteerConfig], Iterator[Problem]], ...] = (
    output_rule,
    device_rule,
    _prompts,
    schedule_rule,
    unit_interval_rule,
    every_method(_noise, _looks, _tempering, _noisy_reward, _budget, *NOISE_RULES, *GRADIENT_RULES),
    compare_rule,
    rewards_rule,
    hierarchy_rule,
    served_rule,
    rules_rule,
    vlm_rule,
    no_sets_rule,
    no_recorded_rule,
    exemplars_rule,
    call_rule,
    sizes_rule,
    categories_rule,
)
