"""Tiny random text encoders."""

from __future__ import annotations

from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from tests.zoo.tokenizers import clip_tokenizer, word_tokenizer


def clip_config(width: int = 16, projection: int = 16, length: int = 16) -> CLIPTextConfig:
    """Two layers, because pipelines take the last but one."""
    tokenizer = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def clip_text(width: int = 16) -> CLIPTextModel:
    """CLIP's text tower."""
    return CLIPTextModel(clip_config(width)).eval()


def clip_text_projected(width: int = 16) -> CLIPTextModelWithProjection:
    """CLIP's text tower with a pooled, projected output."""
    return CLIPTextModelWithProjection(clip_config(width)).eval()


def t5(width: int = 32) -> T5EncoderModel:
    """T5's encoder."""
    config = T5Config(
        vocab_size=len(word_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=width,
        num_layers=1,
        num_heads=2,
    )
    return T5EncoderModel(config).eval()
