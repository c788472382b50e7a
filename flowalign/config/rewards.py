"""Schemas of the rewards: one per file of `rewards/`. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.attention import TowerAttention
from flowalign.config.reward_base import RewardBase
from flowalign.config.rewards_heads import (
    ClapReward,
    HPSv3Reward,
    ImageRewardReward,
    VideoRewardReward,
)
from flowalign.config.rewards_rules import GenEvalReward, NSFWReward, OCRReward, PictureReward
from flowalign.config.rewards_vlm import QuestionsReward, RewardDanceReward, VQAScoreReward


class ShapesReward(RewardBase):
    """The exact verifier of the shapes world."""

    name: Literal["shapes"]
    mode: Literal["flat", "hierarchical", "strict", "colour", "count", "relation"] = "flat"
    """Soft score; weighted global + subject + relation (HiCoGen); 1 only when all is exact; or one
    part: share of the named colours that are there, right number of things, or the relation, where
    prompts without one have no score."""
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
    """`shapes` (the built-in tiny CLIP), a local folder or a Hub id of a CLIP or a SigLIP."""
    revision: str | None = None
    """Commit of the Hub repository."""
    output: Literal["cosine", "logit", "probability"] = "cosine"
    """Of a SigLIP also its logit exp(t) cos + b, or the sigmoid of that."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Cosine times this (2.5 in CLIPScore); not used for logit and probability."""
    clamp: bool = False
    """max(., 0), as CLIPScore has it; not used for logit and probability."""
    attention: TowerAttention = "sdpa"
    """transformers' attention of the model."""


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


class PickScoreReward(RewardBase):
    """PickScore: which picture of a prompt people would pick."""

    name: Literal["pickscore"]
    model: str = "yuvalkirstain/PickScore_v1"
    """A local folder or a Hub id of a CLIPModel."""
    revision: str | None = None
    """Commit of the Hub repository."""
    processor: str | None = None
    """Folder or Hub id of tokenizer and preprocessing. When absent: the model's own, and for the
    published model those of laion/CLIP-ViT-H-14-laion2B-s32B-b79K."""
    attention: TowerAttention = "sdpa"
    """transformers' attention of the model."""


class HPSv2Reward(RewardBase):
    """HPSv2 or HPSv2.1: human preference score."""

    name: Literal["hpsv2"]
    model: str
    """A `.safetensors` file of open_clip's ViT-H-14, or a local folder or Hub id of a CLIPModel."""
    revision: str | None = None
    """Commit of the Hub repository."""
    processor: str | None = None
    """Folder or Hub id of tokenizer and preprocessing of a CLIPModel; the model's own when
    absent."""
    scale: Annotated[float, Field(gt=0)] = 100.0
    """Cosine times this: 100 as the benchmark prints it, 1 as the authors' function gives it."""
    attention: TowerAttention = "sdpa"
    """transformers' attention of a CLIPModel."""


class AestheticReward(RewardBase):
    """LAION aesthetics: a rating of the picture alone."""

    name: Literal["aesthetic"]
    model: str = "openai/clip-vit-large-patch14"
    """The CLIP on whose features the head was trained: a local folder or a Hub id."""
    revision: str | None = None
    """Commit of the Hub repository."""
    head: str
    """Safetensors file with `layers.N.weight` and `layers.N.bias` of the linear layers."""
    attention: TowerAttention = "sdpa"
    """transformers' attention of the model."""


class GoalBaselineReward(RewardBase):
    """How far a picture has come from a plain description to the wished one (VLM-RM)."""

    name: Literal["goal_baseline"]
    model: str = "shapes"
    """`shapes` (the built-in tiny CLIP), a local folder or a Hub id."""
    revision: str | None = None
    """Commit of the Hub repository."""
    goal: tuple[str, ...] = ()
    """What is wished, one or several texts; each sample's prompt when empty."""
    baseline: Annotated[tuple[str, ...], Field(min_length=1)]
    """What it is without: one or several texts such as "a picture"."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5  # ours; the paper tries 0 to 1
    """0 is the cosine to the goal, 1 looks along the line from baseline to goal alone."""
    attention: TowerAttention = "sdpa"
    """transformers' attention of the model."""


class JpegReward(RewardBase):
    """Compressed size in kB; negative weight asks for compressible pictures."""

    name: Literal["jpeg"]
    quality: Annotated[int, Field(ge=1, le=95)] = 95
    """JPEG quality."""


class VendiReward(RewardBase):
    """Diversity of a set: the effective number of different samples (algorithm dragon only)."""

    name: Literal["vendi"]
    model: str = "shapes"
    """The CLIP whose features are compared: `shapes`, a local folder or a Hub id."""
    revision: str | None = None
    """Commit of the Hub repository."""
    order: Annotated[float, Field(gt=0)] | Literal["infinity"] = 1.0
    """Order q of the entropy: 1 is Shannon's; more listens to the common, less to the rare."""


class ExemplarBase(RewardBase):
    """What every reward that compares with examples has."""

    model: str = "shapes"
    """The CLIP in whose features they are compared: `shapes`, a local folder or a Hub id."""
    revision: str | None = None
    """Commit of the Hub repository."""
    exemplars: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """A folder of pictures; or texts: a `.txt` or `.jsonl` file of prompts, a list, or
    `shapes:train`. `shapes:pictures` are true pictures of the built-in world."""
    max_exemplars: Annotated[int, Field(ge=1)] = 1024
    """At most so many of them, the first ones."""


class FrechetReward(ExemplarBase):
    """Minus the Frechet distance of a set to exemplars (algorithm dragon only)."""

    name: Literal["frechet"]
    extrapolate: bool = False
    """Tell the distance of an infinite set (FD-infinity): fitted against 1/n, so that numbers of
    sets of different size can be compared. Selection is always at equal size and needs it not."""


class MMDReward(ExemplarBase):
    """Minus the squared maximum mean discrepancy to exemplars (algorithm dragon only)."""

    name: Literal["mmd"]
    kernel: Literal["rbf", "polynomial"] = "rbf"
    """exp(-|x - y|^2 / (2 bandwidth^2)), or (x.y + 1)^degree of unit features."""
    bandwidth: Annotated[float, Field(gt=0)] | None = None
    """Of `rbf`; the median distance between exemplars when absent."""
    degree: Annotated[int, Field(ge=1)] = 3
    """Of `polynomial`."""
    unbiased: bool = True
    """Without the diagonal of each set: mean 0 for equal laws, so it may be negative."""


class CentroidReward(ExemplarBase):
    """Cosine of a set's mean feature and the exemplars' (algorithm dragon only)."""

    name: Literal["centroid"]


class ExemplarReward(ExemplarBase):
    """How close one sample is to exemplars."""

    name: Literal["exemplar"]
    measure: Literal["centroid", "nearest", "frechet"] = "centroid"
    """Cosine to their mean, the largest cosine, or minus the Frechet distance of the sample's
    patches to the patches of exemplar pictures."""


class DinoReward(ExemplarBase):
    """How much a picture looks like reference pictures, to DINO."""

    name: Literal["dino"]
    model: str = "facebook/dinov2-base"
    """A local folder or a Hub id of a DINOv2 or a DINOv3 ViT."""
    measure: Literal["centroid", "nearest"] = "centroid"
    """Cosine to the mean of the exemplars, or the largest cosine to one of them."""
    attention: TowerAttention = "sdpa"
    """transformers' attention of the model."""


class ServedBase(RewardBase):
    """What every reward behind HTTP has."""

    url: str
    """Address of the server, `http://host:port` and maybe a path."""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds for one attempt of one call."""
    batch_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds for all calls about one batch of samples together, waiting included."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Further attempts after a fault that may pass: a broken connection, status 429 or 5xx."""


class JudgeReward(ServedBase):
    """A vision-language model behind an OpenAI-compatible server (vLLM, SGLang); extra `judge`."""

    name: Literal["judge"]
    model: str
    """Name under which the server has the model."""
    instruction: Literal[
        "yes_no",
        "score",
        "rubric",
        "pair",
        "unified_score",
        "unified_axes",
        "unified_pair",
        "unified_think",
    ] = "yes_no"
    """`yes_no`: probability that it shows the prompt (VQAScore); `score`: expected rating 1 to 5;
    `rubric`: mean over `questions`; `pair`: win rate within the prompt's group, both orders;
    `unified_*`: the forms of UnifiedReward's models, the last two are pairwise."""
    question: str | None = None
    """Replaces the instruction's question (`unified_*`: all of it); `{prompt}` is the prompt."""
    questions: tuple[str, ...] = ()
    """Of `rubric`: questions whose right answer is yes; may contain `{prompt}`."""
    text_answer: bool = False
    """Read a JSON answer with a nonce instead of log-probabilities, for servers without these."""
    modality: Literal["image", "video"] = "image"
    """A video is shown as `frames` pictures."""
    frames: Annotated[int, Field(ge=1, le=64)] = 8
    """Evenly spaced frames of a video."""
    image_format: Literal["png", "jpeg"] = "png"
    """How pictures travel: without loss, or smaller (quality 95)."""
    opponents: Annotated[int, Field(ge=2)] | None = None
    """Pairwise: compare each sample with so many of its group instead of with all."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests at once."""
    cache: str | None = None
    """Folder where answers are kept for later runs."""
    api_key_env: str | None = None
    """Environment variable that holds the server's key."""


class RemoteReward(ServedBase):
    """A reward in another environment or on another machine, behind `flowalign serve`."""

    name: Literal["remote"]
    reward: str | None = None
    """Name of the reward on the server; may be absent where the server has one."""
    token_env: str | None = None
    """Environment variable that holds the server's token."""


class RecordedReward(RewardBase):
    """What people said of the samples: scores of a file, by prompt, sample and seed."""

    name: Literal["recorded"]
    path: str
    """JSON lines with `prompt`, `prompt_id`, `sample_id`, `seed`, `score` and, where wanted,
    `sha256` of the picture's file."""
    modality: Literal["image", "video", "audio"] = "image"
    """What was scored."""


class CodeReward(RewardBase):
    """A user's own reward: `my_rewards.py:Sharpness`, allowed on the command line."""

    name: Literal["code"]
    target: str
    """`file.py:Name`; needs `--allow-code file.py`."""
    args: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Keyword arguments of the constructor or factory."""


RewardConfig = Annotated[
    ShapesReward
    | ClipReward
    | OpenClipReward
    | PickScoreReward
    | HPSv2Reward
    | ClapReward
    | HPSv3Reward
    | ImageRewardReward
    | VideoRewardReward
    | AestheticReward
    | GoalBaselineReward
    | JpegReward
    | PictureReward
    | NSFWReward
    | OCRReward
    | GenEvalReward
    | VendiReward
    | FrechetReward
    | MMDReward
    | CentroidReward
    | ExemplarReward
    | DinoReward
    | VQAScoreReward
    | RewardDanceReward
    | QuestionsReward
    | JudgeReward
    | RemoteReward
    | RecordedReward
    | CodeReward,
    Field(discriminator="name"),
]

SET_REWARDS = (VendiReward, FrechetReward, MMDReward, CentroidReward)
TAKE_EXEMPLARS = ("frechet", "mmd", "centroid", "exemplar", "dino")  # names


PAIRWISE = ("pair", "unified_pair", "unified_think")  # instructions that compare two samples


def is_set(config: RewardConfig) -> bool:
    """Whether it scores whole sets, not single samples."""
    return isinstance(config, SET_REWARDS)
