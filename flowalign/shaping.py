"""Shaping: what happens to rewards between the score and the credit.

Shapes: B samples of all processes, M reference samples of a prompt, K rewards. Computed in float64
on the values as they are; NaN where a sample does not count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import torch
from torch import Tensor

from flowalign.config.shaping import (
    MovingShape,
    PARShape,
    RangeShape,
    ShapeConfig,
    ShapingConfig,
    WinRateShape,
)
from flowalign.config.shaping_checks import COMBINED, DISAGREEMENT, ENSEMBLES, merges
from flowalign.constraints import constrained
from flowalign.ensembles import disagreement, lower_bound, mean_of, middle, shares_of
from flowalign.errors import ConfigError
from flowalign.memory import append, recall
from flowalign.types import Scored

MOVING = "shaping.moving."  # + label: (3,) float64, see `moving_statistics`
REFERENCE = "shaping.reference."  # + label: (n, M) float32, scores of reference samples
REFERENCE_PROMPTS = "shaping.reference_prompts"  # (n,) int64, whose scores the rows are


def shaped(scored: Scored, config: ShapingConfig, memory: dict[str, Tensor]) -> Scored:
    """The rewards that credit is given for, in the place of the scores.

    A plain sum keeps the rewards apart, so that an algorithm can normalise each by itself. Every
    other way, gates and constraints put the one term `combined` beside the others, whose weights
    become 0; an ensemble tells its `disagreement` as well. `memory` holds moving statistics and
    multipliers, which this call updates, and scores of reference samples.
    """
    terms, valid = dict(scored.terms), dict(scored.valid)
    for shape in config.rewards:
        name = shape.reward
        values = _shape(shape, scored, memory)
        valid[name] = scored.valid[name] & values.isfinite()
        terms[name] = torch.where(valid[name], values, torch.nan).float()
    if not merges(config):
        return replace(scored, terms=terms, valid=valid)
    used = [name for name, weight in scored.weights.items() if weight != 0]
    others = (one.reward for one in (*config.gates, *config.constraints))
    needed = dict.fromkeys([*used, *others])
    counts = torch.stack([valid[name] & scored.valid[name] for name in needed]).all(dim=0)
    total = torch.zeros(len(counts), dtype=torch.float64)
    if used:
        rows = torch.stack([terms[name].double() for name in used])
        weights = torch.tensor([scored.weights[name] for name in used], dtype=torch.float64)
        total = combined(rows, weights, config)
        if config.combine in ENSEMBLES:
            apart = disagreement(rows, shares_of(weights))
            terms[DISAGREEMENT] = torch.where(counts, apart, torch.nan).float()
            valid[DISAGREEMENT] = counts
    for gate in config.gates:
        # In the reward's own units, whatever shape it has as a term.
        total = vetoed(total, scored.terms[gate.reward].double(), gate.threshold, gate.value)
    if config.constraints:
        limits = (config.constraints, config.multipliers)
        total = constrained(total, counts, scored, *limits, memory)
    terms[COMBINED] = torch.where(counts, total, torch.nan).float()
    valid[COMBINED] = counts
    silent = {name: 0.0 for name in terms}
    return replace(scored, terms=terms, valid=valid, weights=silent | {COMBINED: 1.0})


def combined(rows: Tensor, weights: Tensor, config: ShapingConfig) -> Tensor:
    """The one reward (B,) of rows (K, B), float64, as `config.combine` says."""
    match config.combine:
        case "sum":
            return weighted_sum(rows, weights)
        case "min":
            return smallest(rows, weights)
        case "product":
            return product(rows, weights)
        case "mean":
            return mean_of(rows, shares_of(weights))
        case "median":
            return middle(rows)
        case "lower_bound":
            return lower_bound(rows, shares_of(weights), config.uncertainty)
        case _:
            assert_never(config.combine)


def _shape(shape: ShapeConfig, scored: Scored, memory: dict[str, Tensor]) -> Tensor:
    """The shaped scores (B,) float64 of one reward, undefined where not valid."""
    values, valid = scored.terms[shape.reward].double(), scored.valid[shape.reward]
    match shape:
        case MovingShape():
            key = MOVING + shape.reward
            start = memory.get(key, torch.zeros(3, dtype=torch.float64))
            memory[key] = moving_statistics(start, values[valid], shape.decay)
            return normalised(values, memory[key], shape.epsilon)
        case PARShape():
            reference = references_of(scored.prompt_id, shape.reward, memory)
            return preference(values, reference, shape.scale)
        case WinRateShape():
            return win_rate(values, valid, scored.group, margin=shape.margin)
        case RangeShape():
            assert shape.low is not None and shape.high is not None, "resolved at assembly"
            return to_unit(values, shape.low, shape.high)
        case _:
            assert_never(shape)


def moving_statistics(statistics: Tensor, values: Tensor, decay: float) -> Tensor:
    """(weight, mean, sum of squared deviations) (3,) after new `values` (n,).

    Exactly those of all values so far, each weighted by decay^(steps since then): the merging
    formula of Chan, Golub and LeVeque (1983, equation 2.1) with the old part scaled down.
    """
    if not len(values):
        return statistics
    weight, mean, squares = decay * statistics[0], statistics[1], decay * statistics[2]
    count, new_mean = len(values), values.mean()
    total, apart = weight + count, new_mean - mean
    squares = squares + (values - new_mean).square().sum() + apart.square() * weight * count / total
    return torch.stack([total, mean + apart * count / total, squares])


def normalised(values: Tensor, statistics: Tensor, epsilon: float) -> Tensor:
    """(value - mean) / (std + epsilon) with the statistics of `moving_statistics`."""
    weight, mean, squares = statistics
    return (values - mean) / ((squares / weight).sqrt() + epsilon)


def preference(values: Tensor, reference: Tensor, scale: float) -> Tensor:
    """1/M sum_m sigmoid(scale (r - r_ref^m)) in (0, 1), 1/2 at the reference; (B,), ref (B, M).

    Preference As Reward (arXiv 2502.18770): the Bradley-Terry probability of beating the frozen
    start on the same prompt. Reference samples without a score are left out of the mean; NaN
    where none has one. The paper centres by reference answers of a language model; here they are
    samples of the start, drawn by the rollout's own sampler.
    """
    return torch.sigmoid(scale * (values[:, None] - reference)).nanmean(dim=1)


def win_rate(values: Tensor, valid: Tensor, group: Tensor, *, margin: float = 0.0) -> Tensor:
    """(wins + ties / 2) / (n - 1) against the n - 1 other valid samples of the group; (B,).

    Win rates of a group have mean 1/2; a sample without another has 1/2. The idea is Pref-GRPO's
    (arXiv 2508.20751), which asks a judge about each pair; here a pair is decided by two scores,
    and a difference of at most `margin` is a tie. NaN where not valid.
    """
    same = (group[:, None] == group) & valid[:, None] & valid
    same.fill_diagonal_(False)
    difference = values[:, None] - values
    won = (difference > margin).double() + 0.5 * (difference.abs() <= margin).double()
    others = same.sum(dim=1)
    rate = torch.where(same, won, 0.0).sum(dim=1) / others.clamp(min=1)
    return torch.where(valid, torch.where(others > 0, rate, 0.5), torch.nan)


def to_unit(values: Tensor, low: float, high: float) -> Tensor:
    """(value - low) / (high - low), held in [0, 1]: beyond the range nothing is gained or lost."""
    return ((values - low) / (high - low)).clamp(0.0, 1.0)


def weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """sum_k w_k r_k of rows (K, B)."""
    return (weights[:, None] * rows).sum(dim=0)


def smallest(rows: Tensor, weights: Tensor) -> Tensor:
    """min_k w_k r_k of rows (K, B): only the worst reward can be improved."""
    return (weights[:, None] * rows).amin(dim=0)


def product(rows: Tensor, weights: Tensor) -> Tensor:
    """prod_k r_k^w_k of rows (K, B) in [0, 1]; (1 - r)^|w| where the weight is negative."""
    wanted = torch.where(weights[:, None] > 0, rows, 1.0 - rows)
    return wanted.pow(weights.abs()[:, None]).prod(dim=0)


def vetoed(total: Tensor, score: Tensor, threshold: float, value: float | None) -> Tensor:
    """min(total, value) where the gate's `score` (B,) is below its threshold, else `total`.

    `value` None is the gate's score itself. The minimum: a veto never makes a sample better.
    """
    ceiling = score if value is None else torch.full_like(score, value)
    return torch.where(score < threshold, torch.minimum(total, ceiling), total)


def num_references(config: ShapingConfig | None) -> int:
    """Reference samples of a prompt that the config needs; 0 for none."""
    shapes = () if config is None else config.rewards
    return max((one.references for one in shapes if isinstance(one, PARShape)), default=0)


def without_reference(prompt_id: Tensor, memory: Mapping[str, Tensor]) -> list[int]:
    """Prompts whose reference samples have not been scored yet, in order of appearance."""
    known = memory.get(REFERENCE_PROMPTS, torch.zeros(0, dtype=torch.int64))
    wanted = prompt_id[~torch.isin(prompt_id, known)]
    return list(dict.fromkeys(wanted.tolist()))


def remember(
    prompts: Sequence[int], scored: Scored, config: ShapingConfig, memory: dict[str, Tensor]
) -> None:
    """Keep the scores of reference samples: equally many for each of `prompts`, in this order."""
    rows = {one.reward: one.references for one in config.rewards if isinstance(one, PARShape)}
    for name, count in rows.items():
        new = torch.where(scored.valid[name], scored.terms[name], torch.nan)
        append(memory, REFERENCE + name, new.reshape(len(prompts), -1)[:, :count])
    known = memory.get(REFERENCE_PROMPTS, torch.zeros(0, dtype=torch.int64))
    memory[REFERENCE_PROMPTS] = torch.cat([known, torch.tensor(prompts, dtype=torch.int64)])


def references_of(prompt_id: Tensor, label: str, memory: Mapping[str, Tensor]) -> Tensor:
    """Scores (B, M) float64 of the reference samples of each sample's prompt."""
    row = {prompt: place for place, prompt in enumerate(memory[REFERENCE_PROMPTS].tolist())}
    rows = torch.tensor([row[prompt] for prompt in prompt_id.tolist()], dtype=torch.int64)
    scores = recall(memory, REFERENCE + label)
    assert scores is not None, "references are drawn before rewards are shaped"
    return scores[rows].double()


def resolved(
    config: ShapingConfig,
    ranges: Mapping[str, tuple[float, float]],
    weights: Mapping[str, float],
) -> ShapingConfig:
    """The config with every range written out, from the rewards' own ranges where it is silent.

    Raises ConfigError (exit 2) where a range is needed and the reward has no finite one.
    """
    shapes = [
        _with_range(one, ranges[one.reward]) if isinstance(one, RangeShape) else one
        for one in config.rewards
    ]
    if config.combine == "product":
        done = {one.reward for one in shapes}
        open_ones = [name for name, weight in weights.items() if weight != 0 and name not in done]
        shapes += [
            _with_range(RangeShape(name="range", reward=name), ranges[name]) for name in open_ones
        ]
    return config.model_copy(update={"rewards": tuple(shapes)})


def _with_range(shape: RangeShape, own: tuple[float, float]) -> RangeShape:
    low = own[0] if shape.low is None else shape.low
    high = own[1] if shape.high is None else shape.high
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(
            "CFG-RANGE",
            f"shaping.rewards, reward `{shape.reward}`",
            f"the range {low} to {high} cannot be brought to [0, 1]",
            f"write {{name: range, reward: {shape.reward}, low: ..., high: ...}}",
        )
    return shape.model_copy(update={"low": low, "high": high})
