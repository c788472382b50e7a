"""The text that a noisy reward reads: one tensor of the pipeline's own encoded prompt.

Letters: B prompts, L tokens, D features.
"""

from __future__ import annotations

from torch import Tensor

from flowalign.config.noisy_card import TextCard
from flowalign.errors import CheckpointError, ConfigError
from flowalign.types import Cond


def text_card(cond: Cond) -> TextCard:
    """The largest floating tensor of a condition, which is the sequence and not its pooled form.

    Raises:
        ConfigError: prompts become no tensor of one length.
    """
    found = {
        name: value
        for name, value in cond.batched.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    if not found:
        what = "the pipeline's prompts become no floating tensor of one length"
        fix = "noisy rewards need a pipeline that pads its prompts"
        raise ConfigError("MODEL-TEXT", "model.name", what, fix)
    name = max(found, key=lambda each: found[each][0].numel())
    rows = sequence(found[name])
    return TextCard(name=name, tokens=rows.shape[1], width=rows.shape[2])


def sequence(value: Tensor) -> Tensor:
    """(B, L, D) of a tensor (B, ..., D), (B, D) or (B,)."""
    if value.ndim < 3:
        value = value.reshape(len(value), 1, -1)
    return value.flatten(1, -2)


def text_of(cond: Cond, card: TextCard) -> Tensor:
    """(B, L, D) float32 of a condition.

    Raises:
        CheckpointError: the prompts were encoded otherwise in training.
    """
    value = cond.batched.get(card.name)
    expected = card.tokens, card.width
    if isinstance(value, Tensor) and tuple(sequence(value).shape[1:]) == expected:
        return sequence(value).float()
    seen = tuple(sequence(value).shape[1:]) if isinstance(value, Tensor) else "none"
    what = f"reads text of {card.tokens} tokens of {card.width} features, and the model has {seen}"
    fix = "steer the model that it was trained on, with the same `model.call`, or train another"
    raise CheckpointError("CKPT-SHAPE", f"noisy reward, text `{card.name}`", what, fix)
