"""Schema of a noisy reward's training: a YAML file is a `NoisyRewardConfig`. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.noisy_card import NetworkCard
from flowalign.config.rewards import RewardConfig
from flowalign.config.sampling import SamplerConfig, Section
from flowalign.config.schema import ModelConfig
from flowalign.config.steering import SteerPromptsConfig


class ScoredSamplesConfig(Section):
    """Scored samples of a file, in the place of the model's own; every score becomes a head."""

    path: str
    """Rows `{"prompt": "...", "media": "0.png", "scores": {"name": 0.5}}`; see
    `flowalign data check`."""
    layout: Literal["auto", "flowalign"] = "auto"
    """How the file is laid out; `auto` finds out."""
    media_folder: str | None = None
    """Media paths are relative to this folder, and stay in it; the file's own when absent."""
    fit: Literal["crop", "fail"] = "crop"
    """Media of another size than the model's: scale and cut the middle out, or fail."""
    bad_rows: Literal["fail", "skip"] = "fail"
    """A row that cannot be used: fail, or leave it out; more than 1 % always fail."""


class SoftValueConfig(Section):
    """Regression to log E[exp(lambda r) | x_t] / lambda, whose gradient tilts exactly."""

    name: Literal["soft_value"]
    strength: Annotated[float, Field(ge=0, le=10)] = 2.0
    """lambda, for rewards in standard deviations; 0 is the expected reward. Best near the strength
    that is used later; a large one learns slowly, from few samples."""


class BradleyTerryConfig(Section):
    """Preferences between noisy samples of a prompt (VideoAlign, arXiv 2501.13918)."""

    name: Literal["bradley_terry"]
    ties: Annotated[float, Field(ge=1, le=100)] = 1.0
    """k of Rao and Kupper, 5 in VideoAlign's reward; 1 leaves ties out."""


ObjectiveConfig = Annotated[SoftValueConfig | BradleyTerryConfig, Field(discriminator="name")]


class NoisyTrainConfig(Section):
    """The optimisation."""

    steps: Annotated[int, Field(ge=1)] = 2000
    """Optimizer steps."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Noisy states of a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Of AdamW at its highest; it warms up and falls to 0."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """Compute the network's products in bfloat16; weights and losses stay float32."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts that only measure accuracy."""


class NoisyRewardConfig(Section):
    """One complete training of a reward network on noisy latents, for `flow_nrg`."""

    output: str
    """The new folder: card and weights."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random number of the training is a function of this and of its own key."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    model: ModelConfig = ModelConfig()
    prompts: SteerPromptsConfig = SteerPromptsConfig(source="shapes:train", num_prompts=512)
    """What own samples are drawn of."""
    rewards: tuple[RewardConfig, ...] = ()
    """Scores of own samples; every one becomes a head of its label."""
    reward_failure: Literal["raise", "drop"] = "raise"
    """A reward that fails for a sample stops the training, or the sample lacks that score."""
    reward_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds one reward call of one batch may take."""
    sampler: SamplerConfig = SamplerConfig()
    """How own samples are drawn; the same as in steering is best."""
    samples_per_prompt: Annotated[int, Field(ge=1)] = 8
    """Own samples of each prompt."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Samples of one network call or decoding."""
    data: ScoredSamplesConfig | None = None
    """Scored samples of a file; own samples when absent."""
    objective: ObjectiveConfig
    """What the heads are fitted to."""
    network: NetworkCard = NetworkCard()
    train: NoisyTrainConfig = NoisyTrainConfig()

    @property
    def held_out_rewards(self) -> tuple[RewardConfig, ...]:
        """None: rules that read the rewards of all jobs ask for them."""
        return ()
