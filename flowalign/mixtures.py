"""One reward of a rule and a model: the rule where it is sure, the model elsewhere.

Shapes: B samples of all processes. Computed in float64 on the scores as they are, before any shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowalign.config.shaping_mixes import CorrectedMix, HybridMix, MixConfig
from flowalign.errors import ConfigError
from flowalign.shaping import moving_statistics
from flowalign.types import Scored

MIX = "shaping.mix."  # + label of the rule: (3,) float64, see `moving_statistics`
FLAT = 1e-8  # standard deviation below which scores are taken for equal


def mixed(scored: Scored, mixes: Sequence[MixConfig], memory: dict[str, Tensor]) -> Scored:
    """The scores with each mix in the place of its rule's; `memory` holds moving statistics."""
    terms, valid = dict(scored.terms), dict(scored.valid)
    for mix in mixes:
        if isinstance(mix, CorrectedMix):
            rule, model = (scored.terms[name].double() for name in (mix.rule, mix.model))
            values = corrected(rule, model, neutral=mix.neutral, offset=mix.offset)
            counts = scored.valid[mix.rule] & scored.valid[mix.model]
        else:
            values, counts = _hybrid(mix, scored, memory)
        terms[mix.rule] = torch.where(counts, values, torch.nan).float()
        valid[mix.rule] = counts
    return replace(scored, terms=terms, valid=valid)


def _hybrid(mix: HybridMix, scored: Scored, memory: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(values (B,), valid (B,)): a part that has no share need not have a score."""
    rule, model = scored.terms[mix.rule].double(), scored.terms[mix.model].double()
    has_rule, has_model = scored.valid[mix.rule], scored.valid[mix.model]
    counts = torch.ones_like(has_rule)
    if mix.confidence is None:
        confidence = has_rule.double()
    elif isinstance(mix.confidence, str):
        counts = scored.valid[mix.confidence]
        confidence = torch.where(counts, scored.terms[mix.confidence].double(), 0.0)
    else:
        confidence = torch.full_like(rule, mix.confidence)
    mean, std = _scale(mix, model[has_model], memory)
    values = hybrid(rule, (model - mean) / std, confidence)
    counts = counts & (has_rule | (confidence == 0)) & (has_model | (confidence == 1))
    return values, counts


def _scale(mix: HybridMix, scores: Tensor, memory: dict[str, Tensor]) -> tuple[float, float]:
    """Mean and std of the model's scores: those of the config, or of the run so far."""
    if mix.mean is not None and mix.std is not None:
        return mix.mean, mix.std
    key = MIX + mix.rule
    start = memory.get(key, torch.zeros(3, dtype=torch.float64))
    memory[key] = moving_statistics(start, scores, mix.decay)
    weight, mean, squares = memory[key].tolist()
    if weight == 0:
        return 0.0, 1.0  # no score yet, so nothing is scaled
    std = (squares / weight) ** 0.5
    return mean, std if std > FLAT * max(abs(mean), 1.0) else 1.0


def hybrid(rule: Tensor, standardised: Tensor, confidence: Tensor) -> Tensor:
    """c r + (1 - c) sigmoid(z) in [0, 1] of a rule r (B,) in [0, 1] and a model's z (B,).

    Rule and model rewards by confidence, after HARMO (Beyond Monolithic Rewards), which chooses
    one of the two per sample (c in {0, 1}); with c = r of a rule in {0, 1} it is BaseReward's
    1[match] + (1 - 1[match]) sigmoid(z). What has no share may be NaN.
    """
    by_rule = torch.where(confidence > 0, confidence * rule, 0.0)
    by_model = torch.where(confidence < 1, (1 - confidence) * torch.sigmoid(standardised), 0.0)
    return by_rule + by_model


def corrected(rule: Tensor, rating: Tensor, *, neutral: float, offset: float) -> Tensor:
    """r (u - neutral) + offset of a rule r and a rating u, both (B,).

    GDRO (arXiv 2601.02036): text that can be read counts in a picture that is better than
    mediocre, and against it in a worse one.
    """
    return rule * (rating - neutral) + offset


def check_ranges(mixes: Sequence[MixConfig], ranges: Mapping[str, tuple[float, float]]) -> None:
    """ConfigError (exit 2) where a rule or a confidence is not in [0, 1] by its own range."""
    for mix in mixes:
        names = [mix.rule]
        if isinstance(mix, HybridMix) and isinstance(mix.confidence, str):
            names.append(mix.confidence)
        for name in names if isinstance(mix, HybridMix) else ():
            low, high = ranges[name]
            if low < 0 or high > 1:
                what = f"`{name}` ranges from {low:g} to {high:g}, and a hybrid needs [0, 1]"
                fix = "name a reward such as ocr, geneval, shapes, nsfw or a yes/no judge"
                raise ConfigError("CFG-RANGE", "shaping.mixes", what, fix)
