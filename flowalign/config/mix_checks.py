"""What the mixes of a rule and a model need of the rest of a config. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from flowalign.config.problems import Problem
from flowalign.config.rewards import is_set
from flowalign.config.schema import RunConfig
from flowalign.config.shaping_mixes import CorrectedMix, HybridMix, MixConfig
from flowalign.config.suggest import did_you_mean
from flowalign.config.yaml12 import KeyPath


def mixes_rule(config: RunConfig) -> Iterator[Problem]:
    """Mixes name two rewards of this run, one weighted and one not, and nothing counts twice."""
    shaping = config.shaping
    if shaping is None or config.data is not None:
        return
    weights = {one.label or one.name: one.weight for one in config.rewards if not is_set(one)}
    rules = [mix.rule for mix in shaping.mixes]
    gated = {gate.reward for gate in shaping.gates}
    par = {shape.reward for shape in shaping.rewards if shape.name == "par"}
    for index, mix in enumerate(shaping.mixes):
        unknown = [key for key, name in _named(mix).items() if name not in weights]
        for key in unknown:
            name = _named(mix)[key]
            what = f"`{name}` is no reward of single samples in `rewards`"
            yield _conflict((index, key), what, did_you_mean(name, list(weights)))
        if unknown:
            continue
        if rules.index(mix.rule) != index:
            yield _conflict((index, "rule"), f"`{mix.rule}` is in two mixes", "keep one of them")
        yield from _roles(mix, index, weights, rules)
        if mix.rule in par:
            what = f"`{mix.rule}` has the shape par, whose references know nothing of the mix"
            yield _conflict((index, "rule"), what, "use another shape, or no mix")
        if mix.rule in gated:
            what = f"`{mix.rule}` has a gate, which would see the mix in its place"
            yield _conflict((index, "rule"), what, "give the gate a reward of its own label")
        if isinstance(mix, HybridMix) and (mix.mean is None) != (mix.std is None):
            what = "`mean` and `std` belong together"
            yield _conflict((index,), what, "give both, or none for moving statistics")
        if isinstance(mix, CorrectedMix) and shaping.combine == "product":
            what = "a corrected reward may be negative, and a product needs [0, 1]"
            yield _conflict((index,), what, "use combine: sum, or a hybrid")


def _roles(
    mix: MixConfig, index: int, weights: dict[str, float], rules: list[str]
) -> Iterator[Problem]:
    if mix.rule == mix.model:
        yield _conflict((index, "model"), "rule and model are one reward", "name another")
    elif mix.model in rules:
        what = f"`{mix.model}` is the rule of another mix"
        yield _conflict((index, "model"), what, "name a reward that is not mixed")
    elif weights[mix.model] != 0:
        what = f"`{mix.model}` has the weight {weights[mix.model]:g} and would count twice"
        yield _conflict((index, "model"), what, "give it weight: 0")
    elif weights[mix.rule] == 0:
        what = f"`{mix.rule}` has weight 0, and the mix takes its place"
        yield _conflict((index, "rule"), what, "give it a weight")


def _named(mix: MixConfig) -> dict[str, str]:
    """The rewards that a mix names, by key."""
    found = {"rule": mix.rule, "model": mix.model}
    if isinstance(mix, HybridMix) and isinstance(mix.confidence, str):
        found["confidence"] = mix.confidence
    return found


def _conflict(path: KeyPath, what: str, fix: str) -> Problem:
    return Problem(path=("shaping", "mixes", *path), code="CFG-CONFLICT", what=what, fix=fix)
