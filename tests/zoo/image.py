"""Tiny random image pipelines: 16 x 16 pixels, autoencoders of factor 2."""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false
# diffusers exports its classes lazily, and annotates lists of blocks as single ones.

from __future__ import annotations

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from tests.zoo import text
from tests.zoo.tokenizers import clip_tokenizer, t5_tokenizer, word_tokenizer


def vae(*, shift: float | None = None, levels: int = 2) -> AutoencoderKL:
    """Factor 2 ** (levels - 1); with a shift, as flow models have it."""
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=1.5,
        shift_factor=shift,
        use_quant_conv=shift is None,
        use_post_quant_conv=shift is None,
    ).eval()


def flow(shift: float = 3.0) -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow with a fixed shift."""
    return FlowMatchEulerDiscreteScheduler(shift=shift)


def shifted_by_size() -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow whose shift the pipeline computes from the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def unet(**sizes: object) -> UNet2DConditionModel:
    """Two levels with cross-attention on the lower one."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **sizes,
    ).eval()


def sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5: UNet, epsilon-prediction, DDIM."""
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=text.clip_text(),
        tokenizer=clip_tokenizer(),
        unet=unet(cross_attention_dim=16),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: two CLIPs, size conditioning, Euler in sigma space."""
    torch.manual_seed(0)
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=text.clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=text.clip_text_projected(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )


def sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 without T5: two CLIPs, rectified flow."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=flow(),
        vae=vae(shift=0.1),
        text_encoder=text.clip_text_projected(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=text.clip_text_projected(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux() -> FluxPipeline:
    """Flux 1 dev: packed latents, embedded guidance, shift by size."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    return FluxPipeline(
        scheduler=shifted_by_size(),
        vae=vae(shift=0.1),
        text_encoder=text.clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=text.t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer.eval(),
    )


def flux2_klein() -> Flux2KleinPipeline:
    """Flux 2 Klein: batch-normalised latents, Qwen 3 text."""
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    autoencoder = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    return Flux2KleinPipeline(
        scheduler=shifted_by_size(),
        vae=autoencoder.eval(),
        text_encoder=text.qwen3(num_layers=28),  # it reads layers 9, 18 and 27
        tokenizer=word_tokenizer(),
        transformer=transformer.eval(),
    )


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image: packed latents, ragged text, guidance with a norm rescale."""
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, 0.0, -0.1, 0.2],
        latents_std=[1.0, 1.5, 0.8, 1.2],
    )
    return QwenImagePipeline(
        scheduler=shifted_by_size(),
        vae=autoencoder.eval(),
        text_encoder=text.qwen25_vl(),
        tokenizer=word_tokenizer(),
        transformer=transformer.eval(),
    )


def sana() -> SanaPipeline:
    """Sana: deep-compression autoencoder, linear attention."""
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=0.8,
    )
    return SanaPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=text.gemma2(),
        vae=autoencoder.eval(),
        transformer=transformer.eval(),
        scheduler=flow(),
    )


def lumina2() -> Lumina2Pipeline:
    """Lumina 2: time runs upwards in the network, guidance with a norm rescale."""
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(64, 16, 16),
        cap_feat_dim=16,
    )
    return Lumina2Pipeline(
        transformer=transformer.eval(),
        scheduler=shifted_by_size(),
        vae=vae(shift=0.1, levels=4),  # the pipeline takes 8 for granted
        text_encoder=text.gemma2(),
        tokenizer=word_tokenizer(),
    )


def z_image() -> ZImagePipeline:
    """Z-Image: lists of tensors, flipped sign and time."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 4, 4],
        axes_lens=[64, 16, 16],
    )
    return ZImagePipeline(
        scheduler=flow(),
        vae=vae(shift=0.1),
        text_encoder=text.qwen3().model,
        tokenizer=word_tokenizer(),
        transformer=transformer.eval(),
    )


def aura_flow() -> AuraFlowPipeline:
    """AuraFlow: UMT5 text, classifier-free guidance on a flow."""
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    return AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=text.umt5(),
        vae=vae(),
        transformer=transformer.eval(),
        scheduler=flow(1.73),
    )


def pixart_sigma() -> PixArtSigmaPipeline:
    """PixArt-Sigma: epsilon with a learned variance that the pipeline drops."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=16,
    )
    return PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=text.t5(),
        vae=vae(),
        transformer=transformer.eval(),
        scheduler=DDIMScheduler(),
    )
