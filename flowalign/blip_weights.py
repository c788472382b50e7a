"""Reads a BLIP of picture and text encoder under the names of its authors' code.

BLIP (arXiv 2201.12086). Sizes are read off the tensors; heads are 64 wide, as in every published
size. The projections of BLIP's contrastive loss are left out: no score reads them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from flowalign.errors import CheckpointError
from flowalign.pretrained import model_of_tensors

HEAD_WIDTH = 64
VISION_EPS, TEXT_EPS = 1e-6, 1e-12
FIX = "give all weights of the published model under their own names"
VISION, TEXT = "visual_encoder.", "text_encoder."
_UNUSED = ("vision_proj.", "text_proj.", "text_encoder.embeddings.position_ids")
_PICTURE_NAMES = (  # of the authors, of transformers; in this order
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    (r"norm\.", "post_layernorm."),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Blip:
    """A frozen picture encoder, and a text encoder that looks at its output."""

    vision: Any  # a `BlipVisionModel`
    text: Any  # a `BlipTextModel`, bidirectional, with cross attention
    side: int  # of the pictures, in pixels
    vocabulary: int


def read_blip(tensors: Mapping[str, Tensor], where: str) -> Blip:
    """The encoders of `tensors`; unknown, missing or misshapen ones raise CheckpointError."""
    picture: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(_UNUSED):
            continue
        if name.startswith(TEXT):
            text[name.removeprefix(TEXT)] = tensor
        else:
            picture[_picture_name(name.removeprefix(VISION))] = tensor
    vision_sizes, text_sizes = _vision_sizes(picture, where), _text_sizes(text, where)
    text_sizes.encoder_hidden_size = vision_sizes.hidden_size
    given = {"dtype": torch.float32, "where": where, "fix": FIX, "attention": "eager"}
    vision = model_of_tensors(
        BlipVisionModel, vision_sizes, picture, kind="a picture encoder of BLIP", **given
    )
    # A pooler would be asked for: ours has none, as the authors' has none.
    encoder = model_of_tensors(
        _TextEncoder, text_sizes, text, kind="a text encoder of BLIP", **given
    )
    return Blip(
        vision=vision,
        text=encoder,
        side=vision.config.image_size,
        vocabulary=text_sizes.vocab_size,
    )


class _TextEncoder(BlipTextModel):
    """The text encoder without a pooler; `from_pretrained` cannot be told so."""

    def __init__(self, config: BlipTextConfig) -> None:
        super().__init__(config, add_pooling_layer=False)


def _picture_name(name: str) -> str:
    for pattern, new in _PICTURE_NAMES:
        changed, count = re.subn(f"^{pattern}", new, name)
        if count:
            return changed
    return name  # told as unknown


def _shape(tensors: Mapping[str, Tensor], name: str, where: str) -> tuple[int, ...]:
    if name not in tensors:
        what = f"is no BLIP of picture and text encoder: it has no `{name}`"
        raise CheckpointError("CKPT-MODEL", where, what, FIX)
    return tuple(tensors[name].shape)


def _depth(tensors: Mapping[str, Tensor], stem: str) -> int:
    found = [re.match(rf"encoder\.{stem}\.(\d+)\.", name) for name in tensors]
    return 1 + max((int(match[1]) for match in found if match), default=0)


def _vision_sizes(tensors: Mapping[str, Tensor], where: str) -> BlipVisionConfig:
    _, positions, width = _shape(tensors, "embeddings.position_embedding", where)
    patch = _shape(tensors, "embeddings.patch_embedding.weight", where)[-1]
    inner = _shape(tensors, "encoder.layers.0.mlp.fc1.weight", where)[0]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=_depth(tensors, "layers"),
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        image_size=patch * math.isqrt(positions - 1),
        patch_size=patch,
        layer_norm_eps=VISION_EPS,
    )


def _text_sizes(tensors: Mapping[str, Tensor], where: str) -> BlipTextConfig:
    vocabulary, width = _shape(tensors, "embeddings.word_embeddings.weight", where)
    inner = _shape(tensors, "encoder.layer.0.intermediate.dense.weight", where)[0]
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=_depth(tensors, "layer"),
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        max_position_embeddings=_shape(tensors, "embeddings.position_embeddings.weight", where)[0],
        layer_norm_eps=TEXT_EPS,
        is_decoder=True,  # builds the cross attentions; the pass itself is bidirectional
        # Tokens of generation, which a score never makes; they must lie in the vocabulary.
        bos_token_id=0,
        eos_token_id=0,
        sep_token_id=0,
        pad_token_id=0,
    )
