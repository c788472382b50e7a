"""Random StableDiffusion3 pipelines of two sizes, built without any download."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Depth, width and latent side (pixels / 8) of the transformer."""

    layers: int
    heads: int  # of 16 features (nano) or 64 (small)
    head_dim: int
    latent: int


NANO = Size(layers=2, heads=4, head_dim=16, latent=8)  # 0.3 M parameters
SMALL = Size(layers=4, heads=4, head_dim=64, latent=16)  # 9 M parameters
TEXT_WIDTH = 32


def clip_tokenizer() -> CLIPTokenizer:
    """Single letters, so that every prompt has tokens."""
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS)]
    vocab = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def t5_tokenizer() -> T5Tokenizer:
    words = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    return T5Tokenizer(vocab=[(word, -float(i)) for i, word in enumerate(words)], extra_ids=0)


def clip_encoder() -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=TEXT_WIDTH,
        intermediate_size=64,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModelWithProjection(config)


def t5_encoder() -> T5EncoderModel:
    config = T5Config(vocab_size=30, d_model=TEXT_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return T5EncoderModel(config)


def sd3(size: Size, seed: int = 0) -> StableDiffusion3Pipeline:
    """The pipeline in float32 on the CPU: 77 CLIP and 128 T5 tokens, 16 latent channels, 8x VAE."""
    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=size.latent,
        patch_size=1 if size.latent <= 8 else 2,
        in_channels=16,
        num_layers=size.layers,
        attention_head_dim=size.head_dim,
        num_attention_heads=size.heads,
        joint_attention_dim=TEXT_WIDTH,
        caption_projection_dim=size.heads * size.head_dim,
        pooled_projection_dim=2 * TEXT_WIDTH,
        out_channels=16,
        pos_embed_max_size=32,
    )
    # The output layer starts at zero in diffusers; a zero prediction has no gradient to compare.
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.02)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),  # type: ignore[arg-type]
        down_block_types=("DownEncoderBlock2D",) * 4,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 4,  # type: ignore[arg-type]
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.53,
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.eval(),
        text_encoder=clip_encoder().eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder().eval(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder().eval(),
        tokenizer_3=t5_tokenizer(),
    )
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
        module.requires_grad_(False)
    return pipe
