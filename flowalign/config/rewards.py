"""Schemas of the rewards: one per file of `rewards/`. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.sampling import Section


class RewardBase(Section):
    """What every reward has."""

    label: str | None = None
    """Name of the term in metrics and galleries; the reward's name when absent."""
    weight: float = 1.0
    """Weight in the combined reward; negative to minimise."""


class ShapesReward(RewardBase):
    """The exact verifier of the shapes world."""

    name: Literal["shapes"]
    mode: Literal["flat", "hierarchical", "strict"] = "flat"
    """Soft score; weighted global + subject + relation (HiCoGen); or 1 only when all is exact."""
    global_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the whole picture in `hierarchical`."""
    subject_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the single objects in `hierarchical`."""
    relation_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the objects' relations in `hierarchical`."""


class ClipReward(RewardBase):
    """CLIP score by transformers: cosine of picture and prompt."""

    name: Literal["clip"]
    model: str = "shapes"
    """`shapes` (the built-in tiny CLIP), a local folder or a Hub id."""
    revision: str | None = None
    """Commit of the Hub repository."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Cosine times this (2.5 in CLIPScore)."""
    clamp: bool = False
    """max(., 0), as CLIPScore has it."""


class OpenClipReward(RewardBase):
    """CLIP score by open_clip."""

    name: Literal["open_clip"]
    model: str = "shapes"
    """`shapes`, or a model name of open_clip."""
    pretrained: str | None = None
    """A tag of open_clip, or a safetensors file."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Cosine times this."""
    clamp: bool = False
    """max(., 0)."""


class JpegReward(RewardBase):
    """Compressed size in kB; negative weight asks for compressible pictures."""

    name: Literal["jpeg"]
    quality: Annotated[int, Field(ge=1, le=95)] = 95
    """JPEG quality."""


class CodeReward(RewardBase):
    """A user's own reward: `my_rewards.py:Sharpness`, allowed on the command line."""

    name: Literal["code"]
    target: str
    """`file.py:Name`; needs `--allow-code file.py`."""
    args: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Keyword arguments of the constructor or factory."""


RewardConfig = Annotated[
    ShapesReward | ClipReward | OpenClipReward | JpegReward | CodeReward,
    Field(discriminator="name"),
]
