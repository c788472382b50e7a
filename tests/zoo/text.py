"""Tiny random text encoders. Two layers where a pipeline takes the last but one."""

from __future__ import annotations

from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.zoo.tokenizers import clip_tokenizer, t5_tokenizer, word_tokenizer

WIDTH = 16


def clip_config(length: int = 16) -> CLIPTextConfig:
    """Two layers of width 16, `length` positions."""
    return CLIPTextConfig(
        vocab_size=len(clip_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def clip_text(length: int = 16) -> CLIPTextModel:
    """CLIP's text tower."""
    return CLIPTextModel(clip_config(length)).eval()


def clip_text_projected() -> CLIPTextModelWithProjection:
    """CLIP's text tower with a pooled, projected output."""
    return CLIPTextModelWithProjection(clip_config()).eval()


def t5() -> T5EncoderModel:
    """T5's encoder."""
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=WIDTH,
        d_kv=8,
        d_ff=WIDTH,
        num_layers=1,
        num_heads=2,
    )
    return T5EncoderModel(config).eval()


def umt5() -> UMT5EncoderModel:
    """UMT5's encoder."""
    config = UMT5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=WIDTH,
        d_kv=8,
        d_ff=WIDTH,
        num_layers=1,
        num_heads=2,
    )
    return UMT5EncoderModel(config).eval()


def gemma2() -> Gemma2Model:
    """Gemma 2 as a text encoder."""
    config = Gemma2Config(
        vocab_size=len(word_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return Gemma2Model(config).eval()


def llama() -> LlamaModel:
    """Llama as a text encoder; the pipeline takes the third layer from the end."""
    config = LlamaConfig(
        vocab_size=len(word_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaModel(config).eval()


def qwen3(num_layers: int = 2) -> Qwen3ForCausalLM:
    """Qwen 3 with its language-model head."""
    config = Qwen3Config(
        vocab_size=len(word_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return Qwen3ForCausalLM(config).eval()


def qwen25_vl() -> Qwen2_5_VLForConditionalGeneration:
    """Qwen 2.5 VL, of which only the language tower is used."""
    text = {
        "vocab_size": len(word_tokenizer()),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 2],
        },
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    vision = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return Qwen2_5_VLForConditionalGeneration(config).eval()
