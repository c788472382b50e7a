"""Values of the methods that choose the initial noise that are impossible together."""

from __future__ import annotations

from collections.abc import Iterator

from flowalign.config.checks import conflict, schedule_rule
from flowalign.config.gradient_checks import gradients_needed
from flowalign.config.noise_methods import (
    NoiseOptimizationConfig,
    NoiseSearchConfig,
    price,
)
from flowalign.config.problems import Problem
from flowalign.config.steering import SteerConfig

KIND_KEYS = {  # keys that only these kinds read
    "similarity": ("zero_order",),
    "search_steps": ("random", "zero_order"),
    "survivors": ("paths",),
    "forward": ("paths",),
    "back": ("paths",),
}


def noise_search_rule(config: SteerConfig) -> Iterator[Problem]:
    """Keys of another kind, steps that do not fit, ranks of one reward."""
    method, steps = config.method, config.sampler.num_steps
    if not isinstance(method, NoiseSearchConfig):
        return
    for key, kinds in KIND_KEYS.items():
        default = NoiseSearchConfig.model_fields[key].default
        if method.kind not in kinds and getattr(method, key) != default:
            what = f"belongs to kind {' and '.join(kinds)}, and kind is {method.kind}"
            yield conflict(("method", key), what, "remove it, or change the kind")
    if method.kind == "paths" and method.back > method.forward:
        what = f"{method.back:g} of the steps back from {method.forward:g} is beyond pure noise"
        yield conflict(("method", "back"), what, f"at most forward {method.forward:g}")
    counted = [reward for reward in config.rewards if reward.weight != 0]
    if method.combine == "rank" and len(counted) < 2:
        what = "rank with one reward is the reward itself"
        yield conflict(("method", "combine"), what, "give several rewards, or use sum")
    if method.search_steps is None:
        return
    if method.search_steps > steps:
        what = f"{method.search_steps} are more than sampler.num_steps {steps}"
        yield conflict(("method", "search_steps"), what, f"at most {steps}")
        return
    fewer = config.sampler.model_copy(update={"num_steps": method.search_steps})
    for problem in schedule_rule(config.model_copy(update={"sampler": fewer})):
        what = f"sampler.noise does not fit {method.search_steps} steps: {problem.what}"
        yield conflict(("method", "search_steps"), what, "take more, or another schedule")


def noise_optimization_rule(config: SteerConfig) -> Iterator[Problem]:
    """Gradients need a deterministic sampler and rewards that have them."""
    method, sampler = config.method, config.sampler
    if not isinstance(method, NoiseOptimizationConfig):
        return
    if sampler.name != "ode" and sampler.noise_level > 0:
        what = f"{method.name} needs a deterministic sampler, and {sampler.name} draws noise"
        yield conflict(("sampler", "name"), what, "use `sampler: {name: ode, num_steps: 4}`")
    yield from gradients_needed(config, method.name, "method noise_search")


def noise_budget_rule(config: SteerConfig) -> Iterator[Problem]:
    """A budget decides the rounds or iterations, and has to pay one."""
    method, budget = config.method, config.budget
    if budget is None or not isinstance(method, NoiseSearchConfig | NoiseOptimizationConfig):
        return
    search = isinstance(method, NoiseSearchConfig)
    key, given = ("rounds", method.rounds) if search else ("iterations", method.iterations)
    if given is not None:
        what = f"{given} is given, and budget {budget} decides it as well"
        yield conflict(("method", key), what, "keep one of the two")
    least = price(method, config.sampler.num_steps, 1)
    if budget < least:
        what = f"{budget} evaluations, and {method.name} takes {least} for one of its {key}"
        yield conflict(("budget",), what, f"at least {least}, or fewer steps")


NOISE_RULES = (noise_search_rule, noise_optimization_rule, noise_budget_rule)
