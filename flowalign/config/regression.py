"""Schemas of the algorithms that learn on the forward process. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from flowalign.config.advantage import PairRule, ScoreConfig
from flowalign.config.sampling import Section


class UniformLevels(Section):
    """Every level is equally likely."""

    density: Literal["uniform"] = "uniform"
    shift: Annotated[float, Field(gt=0)] = 1.0
    """t becomes shift t / (1 + (shift - 1) t): above 1, noisy levels more often."""


class LogitNormalLevels(Section):
    """t = sigmoid(z) of a normal z: middle levels more often (SD3, arXiv 2403.03206)."""

    density: Literal["logit_normal"]
    mean: float = 0.0
    """Mean of z; above 0, noisy levels more often."""
    std: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of z."""
    shift: Annotated[float, Field(gt=0)] = 1.0
    """t becomes shift t / (1 + (shift - 1) t): above 1, noisy levels more often."""


class ModeLevels(Section):
    """t = 1 - u - s (cos(pi u / 2)^2 - 1 + u) of a uniform u: a peak in the middle with heavy
    tails (SD3, section 3.1)."""

    density: Literal["mode"]
    scale: Annotated[float, Field(ge=-1, le=1.75)] = 1.29
    """s; 0 is uniform, below 0 the ends are more likely than the middle."""
    shift: Annotated[float, Field(gt=0)] = 1.0
    """t becomes shift t / (1 + (shift - 1) t): above 1, noisy levels more often."""


class RolloutLevels(Section):
    """The levels of the rollout's own schedule, each equally likely."""

    density: Literal["rollout"]


LevelsConfig = Annotated[
    UniformLevels | LogitNormalLevels | ModeLevels | RolloutLevels,
    Field(discriminator="density"),
]

LevelWeight = Literal["none", "inverse_square", "cosmap", "min_snr"]


class SFTConfig(Section):
    """Supervised fine-tuning: flow matching or DDPM on data, or on the best of each group."""

    name: Literal["sft"]
    best: Annotated[int, Field(ge=1)] | None = 1
    """Learn from so many samples of each group, the best ones; `null`: from all, as on data without
    scores."""
    levels: LevelsConfig = UniformLevels()
    """How often each noise level is trained."""
    levels_per_sample: Annotated[int, Field(ge=1)] = 4
    """Levels at which an update sees each sample, one in each part of the density."""
    weight: LevelWeight = "none"
    """Weight of the error by level: none; t^-2 or cosmap (rectified flows, SD3); or min-SNR
    (arXiv 2303.09556). With a density that prefers some levels already, none is allowed."""
    snr_gamma: Annotated[float, Field(gt=0)] = 5.0
    """With `weight: min_snr`: the signal-to-noise ratio from which weights stop rising."""
    prompt_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of samples that are trained with the empty prompt; 0.1 keeps guidance usable."""
    updates_per_rollout: Annotated[int, Field(ge=1)] = 1
    """Optimiser steps from one rollout; groups are split over them."""
    control_variate: bool = False  # ours
    """Regress on the policy that drew the samples what all samples of a prompt have in common, and
    on the samples only what sets them apart: the same aim with far less noise, for one more pass.
    Not on data, whose mean the policy does not know."""
    advantage: ScoreConfig = ScoreConfig()
    """What the samples of a group are ranked by."""


class RWRConfig(Section):
    """Reward-weighted regression: samples are learned in proportion to exp(reward / beta)."""

    name: Literal["rwr"]
    beta: Annotated[float, Field(gt=0)] = 1.0
    """Temperature, in units of the reward: small is greedy, large is plain fine-tuning."""
    normalise: Literal["group", "running"] = "group"
    """Softmax over each group, or division by a running mean of exp(reward / beta) over all
    prompts, which also works for data with one sample a prompt."""
    running_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """With `running`: share of itself the mean keeps at each step."""
    z_score: bool = False
    """Standardise the rewards of each step first, so that `beta` has no unit."""
    weight_max: Annotated[float, Field(gt=0)] = 20.0
    """Weights are clipped to this."""
    levels: LevelsConfig = UniformLevels()
    """How often each noise level is trained."""
    levels_per_sample: Annotated[int, Field(ge=1)] = 4
    """Levels at which an update sees each sample, one in each part of the density."""
    weight: LevelWeight = "none"
    """Weight of the error by level: none; t^-2 or cosmap (rectified flows, SD3); or min-SNR
    (arXiv 2303.09556). With a density that prefers some levels already, none is allowed."""
    snr_gamma: Annotated[float, Field(gt=0)] = 5.0
    """With `weight: min_snr`: the signal-to-noise ratio from which weights stop rising."""
    prompt_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of samples that are trained with the empty prompt; 0.1 keeps guidance usable."""
    updates_per_rollout: Annotated[int, Field(ge=1)] = 1
    """Optimiser steps from one rollout; groups are split over them."""
    control_variate: bool = False  # ours
    """Regress on the policy that drew the samples what all samples of a prompt have in common, and
    on the samples only what sets them apart: the same aim with far less noise, for one more pass.
    Not on data, whose mean the policy does not know."""


class DPOConfig(Section):
    """Diffusion-DPO and Flow-DPO: pairs of samples, the better one against the worse."""

    name: Literal["dpo"]
    beta: Annotated[float, Field(gt=0)] = 2000.0
    """How strongly the reference holds, per mean squared error of the network's output: 5000 for
    Diffusion-DPO's epsilon, 100 to 2000 for flows; small latents need less."""
    beta_schedule: Literal["constant", "epsilon"] = "constant"
    """`epsilon`: the error is that of eps, as the derivation has it, so that beta is multiplied by
    (1 - t)^2 on a rectified flow and by abar for v-prediction. `constant` did better on flows."""
    rule: PairRule = "best_worst"
    """Pairs of a group: best against worst, each two, or places (0, 1), (2, 3), ... as in data."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """A pair counts when its rewards differ by more; with `dimensions`, those of a dimension."""
    ties: Literal["drop", "half"] = "drop"
    """Leave out pairs that do not differ, or teach that both are equally likely. With
    `dimensions`, one that does not differ says nothing."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability with which a preference is taken to be wrong."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the winner's own error: an anchor against both errors rising together."""
    dimensions: dict[str, Annotated[float, Field(strict=True)]] = Field(default_factory=dict)
    """Weights of single rewards that prefer for themselves, for example `{VQ: 1, TA: 1}`; below 0,
    less is preferred. When empty, the combined reward decides. With rule `adjacent` a pair may
    lack some of them."""
    levels: LevelsConfig = UniformLevels()
    """How often each noise level is trained."""
    levels_per_sample: Annotated[int, Field(ge=1)] = 4
    """Levels at which an update sees each pair, one in each part of the density."""
    prompt_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of pairs that are trained with the empty prompt; 0.1 keeps guidance usable."""
    updates_per_rollout: Annotated[int, Field(ge=1)] = 1
    """Optimiser steps from one rollout; groups are split over them."""
    advantage: ScoreConfig = ScoreConfig()
    """What the samples of a group are compared by."""
