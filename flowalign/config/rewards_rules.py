"""Schemas of the rewards that follow a rule. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.attention import TowerAttention
from flowalign.config.reward_base import RewardBase


class PictureReward(RewardBase):
    """A statistic of the picture: brightness, saturation, contrast or sharpness."""

    name: Literal["picture"]
    measure: Literal["brightness", "saturation", "contrast", "sharpness"]
    """Mean luma; mean of the largest minus the smallest colour; standard deviation of luma; or
    variance of its Laplacian."""
    modality: Literal["image", "video"] = "image"
    """Of a video: the mean over frames."""


class NSFWReward(RewardBase):
    """How safe a classifier finds a picture: a veto for `shaping.gates`."""

    name: Literal["nsfw"]
    model: str = "Falconsai/nsfw_image_detection"
    """A local folder or a Hub id of an image classifier of transformers."""
    revision: str | None = None
    """Commit of the Hub repository."""
    labels: Annotated[tuple[str, ...], Field(min_length=1)] = ("nsfw",)
    """The classifier's labels that are not wanted."""
    modality: Literal["image", "video"] = "image"
    """Of a video: the least safe frame."""
    attention: TowerAttention = "sdpa"
    """transformers' attention of the model."""


class OCRReward(RewardBase):
    """Text accuracy: what can be read against the quoted text of the prompt; extra `ocr`."""

    name: Literal["ocr"]
    strict: bool = False
    """Text besides the target costs too: 1 - distance / the longer length."""
    spans: Literal["all", "first"] = "all"
    """All quoted texts of the prompt one after the other, or the first one."""
    confidence: Annotated[float, Field(ge=0, le=1)] = 0.5  # RapidOCR's own
    """Lines that the reader is less sure of are not read."""
    modality: Literal["image", "video"] = "image"
    """Of a video: the mean over `frames`."""
    frames: Annotated[int, Field(ge=1, le=64)] = 8
    """Evenly spaced frames of a video."""
