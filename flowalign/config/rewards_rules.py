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


GENEVAL_COLOURS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)


class GenEvalReward(RewardBase):
    """Objects, numbers, colours and positions by a detector (GenEval)."""

    name: Literal["geneval"]
    detector: Literal["shapes", "transformers", "torchvision", "code"] = "shapes"
    """`shapes`: the built-in world's own eyes; a detector of transformers or of torchvision; or
    your own."""
    model: str | None = None
    """Of `transformers` a local folder or a Hub id; of `torchvision` a name such as
    maskrcnn_resnet50_fpn_v2."""
    revision: str | None = None
    """Commit of the Hub repository."""
    weights: str | None = None
    """Of `torchvision`: a safetensors file with the model's state dict."""
    target: str | None = None
    """Of `code`: `file.py:Detector`; needs `--allow-code file.py`."""
    metadata: str | None = None
    """JSON lines with `prompt`, `include` and `exclude`; of `shapes` the prompts themselves say
    it when absent."""
    unknown: Literal["error", "mask"] = "error"
    """A prompt without metadata is a mistake, or has no score."""
    dense: bool = False
    """Mean over what is asked for; when false 1 only if all is right, else 0."""
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.3  # the paper's
    """Objects that the detector is less sure of do not count."""
    counting_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.9  # the paper's
    """The same for prompts of the tag `counting`."""
    max_objects: Annotated[int, Field(ge=1)] = 16  # the paper's
    """Most objects of one class."""
    nms: Annotated[float, Field(gt=0, le=1)] = 1.0  # the paper's: off
    """Of objects of one class that overlap so much (IoU), the best counts; 1: all."""
    position_margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.1  # the paper's
    """Share of both boxes' sizes by which an offset is shortened."""
    colour: Literal["clip", "palette"] = "clip"
    """How colours are told (`shapes` knows its own): by CLIP, or by the nearest of a palette."""
    colour_model: str = "openai/clip-vit-large-patch14"  # the paper's
    """Of `clip`: the built-in `shapes`, a local folder or a Hub id of a CLIP."""
    colour_revision: str | None = None
    """Commit of the CLIP's Hub repository."""
    colours: Annotated[tuple[str, ...], Field(min_length=2)] = GENEVAL_COLOURS
    """Of `clip`: the names to choose from."""


TAKE_CODE = (GenEvalReward,)  # may name a part of the user's own, to be allowed by its file
