"""The card of a noisy-latent reward: what its network reads and what it answers. Torch-free.

A reward is a folder of `card.json` and `model.safetensors`, data and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from flowalign.config.sampling import Section
from flowalign.errors import CheckpointError

CARD, WEIGHTS = "card.json", "model.safetensors"
MAX_BYTES = 1_000_000
Size = Annotated[int, Field(ge=1, le=65_536)]


class HeadCard(Section):
    """One objective. The network's answer h is in standard deviations: reward = mean + std h."""

    name: str
    mean: float
    std: Annotated[float, Field(gt=0)]


class NetworkCard(Section):
    """Sizes of the transformer."""

    width: Size = 96
    """Features of a token."""
    layers: Annotated[int, Field(ge=1, le=64)] = 4
    """Blocks of attention and two linear layers."""
    attention_heads: Size = 4
    """They share the width, so they divide it."""
    patch: Annotated[int, Field(ge=1, le=64)] = 2
    """Side of the square of latent pixels that becomes a token; 1 for latents without a grid."""


class TextCard(Section):
    """Which tensor of the encoded prompt is read."""

    name: str
    """Its place in the pipeline's `encode_prompt`."""
    tokens: Size
    width: Size


class Card(Section):
    """All that has to be known to use the weights."""

    format: Literal["flowalign-noisy-reward"] = "flowalign-noisy-reward"
    version: Literal[1] = 1
    heads: Annotated[tuple[HeadCard, ...], Field(min_length=1, max_length=256)]
    latent_shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=4)]
    path: Literal["RectifiedFlow", "VariancePreserving", "Trigonometric"]
    text: TextCard
    network: NetworkCard
    trained: dict[str, Any] = Field(default_factory=dict)
    """How, on what, and how well; for people."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the heads, in order."""
        return tuple(head.name for head in self.heads)


def read_card(name: str) -> Card:
    """The card of a reward.

    Raises:
        CheckpointError: there is none, or it is not of our format.
    """
    path = Path(name) / CARD
    fix = "name a folder that `flowalign reward train-noisy` wrote"
    if not path.is_file():
        raise CheckpointError("CKPT-MISSING", str(path), "no such file", fix)
    if path.stat().st_size > MAX_BYTES:
        what = f"{path.stat().st_size} bytes; a card has at most {MAX_BYTES}"
        raise CheckpointError("CKPT-MODEL", str(path), what, fix)
    try:
        card = Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"is no card of a noisy reward: {place or 'JSON'}: {first['msg']}"
        raise CheckpointError("CKPT-MODEL", str(path), what, fix) from None
    if len(set(card.names)) < len(card.names):
        what = f"two heads have one name: {', '.join(card.names)}"
        raise CheckpointError("CKPT-MODEL", str(path), what, fix)
    return card
