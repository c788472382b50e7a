"""Tiny random audio pipelines: a fraction of a second."""

# pyright: reportPrivateImportUsage=false, reportArgumentType=false
# diffusers exports its classes lazily, and annotates lists of blocks as single ones.

from __future__ import annotations

import torch
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    AutoencoderOobleck,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)

from tests.zoo import text
from tests.zoo.tokenizers import roberta_tokenizer, t5_tokenizer, word_tokenizer


def oobleck(rate: int) -> AutoencoderOobleck:
    """Eight samples a latent, stereo."""
    return AutoencoderOobleck(
        encoder_hidden_size=8,
        decoder_channels=8,
        decoder_input_channels=4,
        audio_channels=2,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 1],
        sampling_rate=rate,
    ).eval()


def stable_audio() -> StableAudioPipeline:
    """Stable Audio: v-prediction on a trigonometric path; a scheduler without torchsde."""
    torch.manual_seed(0)
    transformer = StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=32,
        cross_attention_input_dim=16,
    )
    return StableAudioPipeline(
        vae=oobleck(800),
        text_encoder=text.t5(),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=16, conditioning_dim=16, min_value=0, max_value=32
        ).eval(),
        tokenizer=t5_tokenizer(),
        transformer=transformer.eval(),
        scheduler=EDMDPMSolverMultistepScheduler(
            prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
    )


def clap() -> ClapModel:
    """CLAP, of which the text tower conditions and the audio tower ranks."""
    config = ClapConfig(
        text_config={
            "vocab_size": len(roberta_tokenizer()),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "projection_dim": 16,
            "pad_token_id": 0,
        },
        audio_config={
            "hidden_size": 16,
            "num_mel_bins": 32,
            "spec_size": 32,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "patch_embeds_hidden_size": 8,
            "depths": [1, 1],
            "num_attention_heads": [1, 1],
            "window_size": 2,
            "num_hidden_layers": 2,
            "projection_dim": 16,
            "enable_fusion": False,
        },
        projection_dim=16,
    )
    return ClapModel(config).eval()


def vocoder() -> SpeechT5HifiGan:
    """Sound from mel frames, 4 values a frame."""
    config = SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=800,
        upsample_initial_channel=8,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3, 5]],
        normalize_before=False,
    )
    return SpeechT5HifiGan(config).eval()


def audioldm2() -> AudioLDM2Pipeline:
    """AudioLDM 2: a GPT-2 writes the conditions, a vocoder the sound."""
    torch.manual_seed(0)
    unet = AudioLDM2UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=(None, 16, 16),
        attention_head_dim=2,
    )
    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=1.5,
    )
    language_model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(word_tokenizer()),
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    language_model.config.max_new_tokens = 4  # type: ignore[attr-defined]
    return AudioLDM2Pipeline(
        vae=autoencoder.eval(),
        text_encoder=clap(),
        text_encoder_2=text.t5(),
        projection_model=AudioLDM2ProjectionModel(16, 16, 16).eval(),
        language_model=language_model.eval(),
        tokenizer=roberta_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        feature_extractor=ClapFeatureExtractor(feature_size=32, sampling_rate=800),
        unet=unet.eval(),
        scheduler=DDIMScheduler(),
        vocoder=vocoder(),
    )


def ace_step() -> AceStepPipeline:
    """ACE-Step 1.5: text and lyrics, adaptive projected guidance."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "sliding_window": 8,
    }
    transformer = AceStepTransformer1DModel(
        **sizes,
        num_hidden_layers=1,
        in_channels=12,
        audio_acoustic_hidden_dim=4,
    )
    condition_encoder = AceStepConditionEncoder(
        **sizes,
        text_hidden_dim=16,
        timbre_hidden_dim=4,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
    )
    return AceStepPipeline(
        vae=oobleck(80),  # 30 s of silence are encoded each time
        text_encoder=text.qwen3().model,
        tokenizer=word_tokenizer(),
        transformer=transformer.eval(),
        condition_encoder=condition_encoder.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
