"""What the shaping of rewards needs of the rest of a config."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from flowalign.config.problems import Problem
from flowalign.config.rewards import is_set
from flowalign.config.schema import RunConfig
from flowalign.config.shaping import PARShape, RangeShape, ShapingConfig
from flowalign.config.suggest import did_you_mean
from flowalign.config.yaml12 import KeyPath

COMBINED = "combined"  # the term that the others become
DISAGREEMENT = "disagreement"  # the term that tells how far an ensemble is apart
ENSEMBLES = ("mean", "median", "lower_bound")
# The scale that a shape brings a reward to; rewards of one scale can be opinions on one thing.
SCALES = {"moving": "unit variance", "par": "[0, 1]", "win_rate": "[0, 1]", "range": "[0, 1]"}


def merges(shaping: ShapingConfig) -> bool:
    """Whether the rewards become one term."""
    return shaping.combine != "sum" or bool(shaping.gates) or bool(shaping.constraints)


def _conflict(path: KeyPath, what: str, fix: str) -> Problem:
    return Problem(path=("shaping", *path), code="CFG-CONFLICT", what=what, fix=fix)


def shaping_rule(config: RunConfig) -> Iterator[Problem]:
    """Shapes and gates name rewards of this run, and their numbers make sense."""
    shaping = config.shaping
    if shaping is None:
        return
    if config.data is not None:
        what = "with `data:` the data's labels are learned from, as they are"
        yield _conflict((), what, "remove it")
        return
    yield from _names(config, shaping)
    yield from _numbers(config, shaping)
    yield from _constraints(config, shaping)
    if shaping.combine in ENSEMBLES:
        yield from _common_scale(config, shaping)
    merged = merges(shaping)
    advantage = getattr(config.algorithm, "advantage", None)
    if merged and advantage is not None and advantage.combine == "per_reward":
        what = "one combined reward, and `algorithm.advantage.combine: per_reward` needs several"
        yield _conflict((), what, "use advantage.combine: weighted_sum")
    weighted = any(one.weight for one in config.rewards if not is_set(one))
    if merged and not weighted and not shaping.constraints:
        what = "no reward of single samples has a weight, so there is nothing to combine"
        yield _conflict((), what, "give one a weight, or remove `shaping`")
    for label in {entry.label for entry in config.rewards} & {COMBINED, DISAGREEMENT}:
        if merged:
            what = f"the label `{label}` is that of a term which shaping adds"
            yield _conflict((), what, "choose another label")


def _names(config: RunConfig, shaping: ShapingConfig) -> Iterator[Problem]:
    single = [entry.label or entry.name for entry in config.rewards if not is_set(entry)]
    entries = [("rewards", index, one) for index, one in enumerate(shaping.rewards)]
    gates = [("gates", index, one) for index, one in enumerate(shaping.gates)]
    limits = [("constraints", index, one) for index, one in enumerate(shaping.constraints)]
    for section, index, one in (*entries, *gates, *limits):
        if one.reward not in single:
            what = f"`{one.reward}` is no reward of single samples in `rewards`"
            yield _conflict((section, index, "reward"), what, did_you_mean(one.reward, single))
    lists = (shaping.rewards, shaping.gates, shaping.constraints)
    for section, found in zip(("rewards", "gates", "constraints"), lists, strict=True):
        for name, count in Counter(one.reward for one in found).items():
            if count > 1:
                what = f"{count} entries for the reward `{name}`"
                yield _conflict((section,), what, "keep one of them")


def _numbers(config: RunConfig, shaping: ShapingConfig) -> Iterator[Problem]:
    for index, shape in enumerate(shaping.rewards):
        if isinstance(shape, RangeShape):
            low = -math.inf if shape.low is None else shape.low
            if low >= (math.inf if shape.high is None else shape.high):
                what = f"low {shape.low} is not below high {shape.high}"
                yield _conflict(("rewards", index, "low"), what, "exchange them")
        if isinstance(shape, PARShape) and config.rollout.batch_size < shape.references:
            what = f"{shape.references} references, and a network call has rollout.batch_size "
            what += f"{config.rollout.batch_size}"
            yield _conflict(("rewards", index, "references"), what, "take fewer references")
    if shaping.combine == "product":
        for index, shape in enumerate(shaping.rewards):
            if shape.name == "moving":
                what = "`moving` gives negative numbers, and a product needs [0, 1]"
                yield _conflict(("rewards", index, "name"), what, "use par, win_rate or range")


def _constraints(config: RunConfig, shaping: ShapingConfig) -> Iterator[Problem]:
    """A constrained reward has its multiplier for a weight, and its own units for a level."""
    weights = {entry.label or entry.name: entry.weight for entry in config.rewards}
    shapes = {one.reward for one in shaping.rewards}
    for index, one in enumerate(shaping.constraints):
        if weights.get(one.reward, 0.0) != 0:
            what = f"`{one.reward}` has the weight {weights[one.reward]:g}, and a constrained "
            what += "reward has a multiplier for a weight"
            yield _conflict(("constraints", index, "reward"), what, "give it weight: 0")
        if one.reward in shapes:
            what = f"`{one.reward}` has a shape, and its level is in the reward's own units"
            yield _conflict(("constraints", index, "reward"), what, "remove the shape")


def _common_scale(config: RunConfig, shaping: ShapingConfig) -> Iterator[Problem]:
    """An ensemble compares its members, so each is brought to one scale, and none is reversed."""
    members = {
        entry.label or entry.name: entry.weight
        for entry in config.rewards
        if entry.weight != 0 and not is_set(entry)
    }
    shapes = {one.reward: one.name for one in shaping.rewards}
    scales = {name: SCALES.get(shapes.get(name, "")) for name in members}
    words = f"`combine: {shaping.combine}` compares rewards"
    if len(members) < 2:
        yield _conflict(("combine",), f"{words}, and there is one", "use combine: sum")
    for name, scale in scales.items():
        if scale is None:
            what = f"{words}, and `{name}` is not brought to a common scale"
            yield _conflict(("rewards",), what, "give it a shape: range, par, win_rate or moving")
    if len(set(scales.values()) - {None}) > 1:
        told = ", ".join(f"{name}: {scale}" for name, scale in scales.items())
        yield _conflict(("rewards",), f"{words}, and their scales differ ({told})", "use one scale")
    if min(members.values(), default=1.0) < 0:
        what = f"{words} that all want the same, and a weight is negative"
        yield _conflict(("combine",), what, "use combine: sum")
    if shaping.combine == "median" and len(set(members.values())) > 1:
        yield _conflict(("combine",), "a median has no weights", "give all rewards weight: 1")
