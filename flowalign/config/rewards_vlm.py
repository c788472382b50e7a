"""Schemas of the rewards that ask a local vision-language model. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.attention import TowerAttention
from flowalign.config.reward_base import RewardBase

PLACE = "{prompt}"
ANSWER = "Please answer yes or no."
QUESTION = "Does this figure show {prompt}? Please answer yes or no."
COMPARISON = (
    "The first picture is a candidate and the second a reference for {prompt}. "
    "Is the candidate better than the reference? Please answer yes or no."
)


class VLMBase(RewardBase):
    """What every reward that asks a local vision-language model has."""

    model: str = "shapes"
    """`shapes` (the built-in tiny one), a local folder or a Hub id of a model that transformers'
    AutoModelForImageTextToText reads: Qwen2.5-VL, Qwen3-VL, InternVL, SmolVLM and others."""
    revision: str | None = None
    """Commit of the Hub repository."""
    form: Literal["full", "two_token"] = "two_token"
    """P(yes) over all tokens (VQAScore as published), or P(yes) / (P(yes) + P(no))."""
    least_mass: Annotated[float, Field(ge=0, lt=1)] = 0.1  # ours
    """A sample fails where yes and no together are less probable: the model would say something
    else. Not used by `form: full`, whose score is then low by itself."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model; bfloat16 halves its memory."""
    attention: TowerAttention = "sdpa"
    """transformers' attention of the model."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Questions of one forward pass."""
    modality: Literal["image", "video"] = "image"
    """A video is shown as `frames` pictures."""
    frames: Annotated[int, Field(ge=1, le=64)] = 8
    """Evenly spaced frames of a video."""


class VQAScoreReward(VLMBase):
    """VQAScore: the probability of yes to "does this figure show the prompt?"."""

    name: Literal["vqascore"]
    form: Literal["full", "two_token"] = "full"
    """P(yes) over all tokens (as published), or P(yes) / (P(yes) + P(no))."""
    question: str = QUESTION
    """What is asked; `{prompt}` is the prompt in quotes."""


class RewardDanceReward(VLMBase):
    """RewardDance: the probability that a sample is better than reference pictures."""

    name: Literal["rewarddance"]
    references: str = "shapes"
    """A `.jsonl` file of rows {"prompt": ..., "image": ...} or a folder with such a
    `manifest.jsonl` (`flowalign sample` writes one); `shapes` draws true pictures of the prompt."""
    max_references: Annotated[int, Field(ge=1)] = 2  # arXiv 2509.08826 takes the top 2 of 16
    """At most so many references of a prompt, the first ones."""
    instruction: str | None = None
    """Put before the question: what makes a picture good."""
    examples: str | None = None
    """A `.jsonl` file of rows {"prompt", "candidate", "reference", "answer", "reasoning"}, shown
    before the question; `answer` is yes or no, `reasoning` may be absent."""
    question: str = COMPARISON
    """What is asked; `{prompt}` is the prompt in quotes."""


class QuestionsReward(VLMBase):
    """Yes/no questions for each prompt, in levels (HiCoGen)."""

    name: Literal["questions"]
    questions: str = "shapes"
    """A `.jsonl` file of rows {"prompt": ..., "global": [...], "subject": [...], "relation":
    [...]}; `shapes` asks for what a prompt of the built-in world says."""
    missing: Literal["error", "prompt"] = "error"
    """A prompt that is not in the file: an error, or the one question whether it is shown."""
    global_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the mean over the questions about the whole picture."""
    subject_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the mean over the questions about single objects."""
    relation_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the mean over the questions about relations."""
