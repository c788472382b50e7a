"""Schemas of the rewards with a regression head on a vision-language, BLIP or audio model.

Torch-free.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.attention import TowerAttention
from flowalign.config.reward_base import RewardBase


class QwenHeadBase(RewardBase):
    """What every reward with a head on Qwen2-VL has."""

    revision: str | None = None
    """Commit of the Hub repository of `model`."""
    weights: str
    """A safetensors file, or a folder of its shards: all weights, the head among them."""
    template: str | None = None
    """A text file with the instruction of the checkpoint's authors: `{prompt}` and the reward's
    special tokens stand in it. Ours when absent: scores then differ from published ones."""
    positions: Literal["flat", "mrope"] = "flat"
    """Rotary positions: 0, 1, 2, ... on all three axes, with which the released heads were trained,
    or Qwen2-VL's own in time, height and width."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the backbone; the head is float32."""
    lora_alpha: Annotated[float, Field(gt=0)] = 128.0
    """Of adapters in `weights`, merged at load time with alpha / rank; without any not used."""
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Samples of one forward pass."""
    attention: TowerAttention = "sdpa"
    """transformers' attention of the model."""


class HPSv3Reward(QwenHeadBase):
    """HPSv3: human preference of pictures, by a head on Qwen2-VL 7B."""

    name: Literal["hpsv3"]
    model: str = "Qwen/Qwen2-VL-7B-Instruct"
    """Sizes, tokenizer and preprocessing of the backbone: a local folder or a Hub id."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Score times this; 0.1 brings it near [0, 1.5]."""
    pixels: Annotated[int, Field(ge=784)] = 256 * 28 * 28
    """Pictures are resized to about this many pixels, proportions kept."""


class VideoRewardReward(QwenHeadBase):
    """VideoReward (VideoAlign): visual quality, motion quality or text alignment of a video."""

    name: Literal["video_reward"]
    model: str = "Qwen/Qwen2-VL-2B-Instruct"
    """Sizes, tokenizer and preprocessing of the backbone: a local folder or a Hub id."""
    dimension: Literal["VQ", "MQ", "TA", "overall"] = "overall"
    """One of the three scores, or their sum. Rewards that differ in `dimension`, `label` and
    `weight` alone share one model and one pass."""
    modality: Literal["video", "image"] = "video"
    """A picture is a video of one frame."""
    fps: Annotated[float, Field(gt=0)] = 2.0
    """Frames per second that are looked at; at least 4 frames, an even number."""
    max_pixels: Annotated[int, Field(ge=784)] = 448 * 448
    """Larger frames are reduced to this many pixels, those below its half enlarged to that."""


class ImageRewardReward(RewardBase):
    """ImageReward: human preference of pictures, by a head on BLIP."""

    name: Literal["image_reward"]
    weights: str
    """A safetensors file of the published model's tensors under their own names."""
    tokenizer: str = "google-bert/bert-base-uncased"
    """BERT's tokenizer: a local folder or a Hub id."""
    revision: str | None = None
    """Commit of the Hub repository of `tokenizer`."""


class ClapReward(RewardBase):
    """CLAP score: cosine of sound and prompt."""

    name: Literal["clap"]
    model: str = "laion/larger_clap_general"
    """A local folder or a Hub id of a ClapModel."""
    revision: str | None = None
    """Commit of the Hub repository."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Cosine times this."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Recordings of one forward pass."""
