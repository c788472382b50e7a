"""Values of a noisy reward's training that are possible one by one and impossible together."""

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
    schedule_rule,
    sizes_rule,
    unit_interval_rule,
)
from flowalign.config.noisy_reward import NoisyRewardConfig
from flowalign.config.problems import Problem
from flowalign.config.rewards import is_set
from flowalign.config.rules_checks import rules_rule
from flowalign.config.server_checks import served_rule
from flowalign.config.set_checks import exemplars_rule
from flowalign.config.suggest import did_you_mean
from flowalign.config.vlm_checks import vlm_rule


def _source(config: NoisyRewardConfig) -> Iterator[Problem]:
    if config.data is None and not config.rewards:
        what = "no rewards and no data: nothing to learn"
        yield conflict(("rewards",), what, "give rewards for own samples, or `data`")
    if config.data is not None and config.rewards:
        what = "data have scores of their own, and rewards score own samples"
        yield conflict(("rewards",), what, "keep one of `rewards` and `data`")
    source = config.prompts.source
    if isinstance(source, str) and source.startswith("shapes:") and source not in SHAPES_PROMPTS:
        what = f"the shapes world has no prompts '{source}'"
        yield conflict(("prompts", "source"), what, did_you_mean(source, SHAPES_PROMPTS))


def _heads(config: NoisyRewardConfig) -> Iterator[Problem]:
    seen = set[str]()
    for index, entry in enumerate(config.rewards):
        name, path = entry.label or entry.name, ("rewards", index)
        if name in seen:
            what = f"duplicate name `{name}`: heads are told apart by it"
            yield conflict(path, what, "give one of them a `label` of its own")
        seen.add(name)
        if is_set(entry):
            yield conflict(path, f"`{name}` scores sets, and heads score samples", "remove it")
        if entry.weight != 1:
            what = f"weight {entry.weight:g}, and heads are weighed at sampling time"
            yield conflict((*path, "weight"), what, "remove it; see method.weights of flow_nrg")


def _network(config: NoisyRewardConfig) -> Iterator[Problem]:
    network = config.network
    if network.width % network.attention_heads:
        what = f"{network.attention_heads} heads do not share a width of {network.width} evenly"
        yield conflict(("network", "attention_heads"), what, "make width a multiple of it")


def _train(config: NoisyRewardConfig) -> Iterator[Problem]:
    if config.train.batch_size % 2:
        what = f"{config.train.batch_size}, and states come in pairs"
        yield conflict(("train", "batch_size"), what, f"{config.train.batch_size + 1}")
    one = config.data is None and config.samples_per_prompt == 1
    if one and config.objective.name == "bradley_terry":
        what = "1 with bradley_terry, which compares samples of a prompt"
        yield conflict(("samples_per_prompt",), what, "draw at least 2")


RULES: tuple[Callable[[NoisyRewardConfig], Iterator[Problem]], ...] = (
    output_rule,
    device_rule,
    _source,
    _heads,
    _network,
    _train,
    schedule_rule,
    unit_interval_rule,
    hierarchy_rule,
    rules_rule,
    vlm_rule,
    served_rule,
    exemplars_rule,
    call_rule,
    sizes_rule,
    categories_rule,
)
