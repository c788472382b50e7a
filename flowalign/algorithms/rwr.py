"""Reward-weighted regression: the policy is fitted to its samples, each weighted by exp(r / beta).

The weights project pi exp(r / beta) on the model (RWR: Peters and Schaal 2007; diffusion: Lee et
al., arXiv 2302.12192; flows: VideoAlign, 2501.13918). On data, or on samples of the policy: then
each round tilts again, and n rounds aim at pi_0 exp(n r / beta); take a larger beta.
Shapes: B samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.algorithms.forward import check_level_weight
from flowalign.algorithms.regression import (
    RegressionBatch,
    regression_batches,
    regression_loss,
    unit_mean,
)
from flowalign.config.regression import RWRConfig
from flowalign.protocols import Path, Policy
from flowalign.scoring import combine
from flowalign.types import Needs, Rollout, Scored

LOG_MEAN = "rwr.log_mean"  # in memory: log of the running mean of exp(r / beta), float64


def group_weights(reward: Tensor, valid: Tensor, group: Tensor, *, beta: float) -> Tensor:
    """n softmax(r / beta) over the n valid samples of each group, (B,) float64; 0 if not valid.

    Each group's mean is 1. With few samples it lies nearer to 1 than exp(r / beta) / Z(prompt)
    does: at 8 samples a Gaussian's tilt by 1 / beta = 0.5 becomes 0.43.
    """
    logits = reward.double() / beta
    weights = torch.zeros(len(group), dtype=torch.float64)
    for number in torch.unique(group).tolist():
        rows = torch.nonzero(valid & (group == number)).flatten()
        weights[rows] = len(rows) * torch.softmax(logits[rows], dim=0)
    return weights


def running_log_mean(logits: Tensor, before: Tensor | None, *, decay: float) -> Tensor:
    """log of decay m + (1 - decay) mean(exp(logits)), 0-dim float64; m = exp(before).

    In log space, so that neither a large reward nor a small beta overflows. The first step's mean
    is its own.
    """
    now = torch.logsumexp(logits.double(), dim=0) - math.log(len(logits))
    if before is None or decay == 0:
        return now
    return torch.logaddexp(before + math.log(decay), now + math.log1p(-decay))


def standardised(reward: Tensor) -> Tensor:
    """(reward - mean) / std of (n,), float64; 0 where all are equal, rounding errors apart."""
    if bool((reward == reward[:1]).all()):
        return torch.zeros_like(reward, dtype=torch.float64)
    centred = reward.double() - reward.double().mean()
    return centred / centred.square().mean().sqrt()


@dataclass(frozen=True, slots=True)
class RWR:
    """Regression with weights of mean 1, clipped at `weight_max`.

    Departure from Flow-GRPO's code, which multiplies by the reward itself: that drives the policy
    away from samples of negative reward, without bound.
    """

    config: RWRConfig
    path: Path

    def __post_init__(self) -> None:
        check_level_weight(self.config.weight, self.path)

    @property
    def needs(self) -> Needs:
        """The finished samples of any solver; a control variate asks the old policy as well."""
        return Needs(old=self.config.control_variate)

    @property
    def num_updates(self) -> int:
        """Optimiser steps from one rollout."""
        return self.config.updates_per_rollout

    def old_decay(self, step: int) -> float:
        """No old policy is kept."""
        return 0.0

    def credit(self, scored: Scored, memory: dict[str, Tensor]) -> Tensor:
        """Weights (B,) >= 0; the running mean lives in `memory`."""
        config = self.config
        reward, valid = combine(scored.terms, scored.valid, scored.weights)
        reward = reward.double()
        if config.z_score:
            reward[valid] = standardised(reward[valid])
        if config.normalise == "group":
            weights = group_weights(reward, valid, scored.group, beta=config.beta)
        else:
            logits = reward / config.beta
            if bool(valid.any()):
                memory[LOG_MEAN] = running_log_mean(
                    logits[valid], memory.get(LOG_MEAN), decay=config.running_decay
                )
            weights = torch.where(valid, logits - memory.get(LOG_MEAN, 0.0), -torch.inf).exp()
        return unit_mean(weights.clamp(max=config.weight_max), valid)

    def batches(
        self,
        rollout: Rollout,
        credit: Tensor,
        generator: torch.Generator,
        *,
        batch_size: int,
        total: int,
    ) -> Iterator[Sequence[RegressionBatch]]:
        """One sequence per update."""
        return regression_batches(
            self.config, self.path, rollout, credit, generator, batch_size=batch_size, total=total
        )

    def loss(self, policy: Policy, batch: RegressionBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean weighted error, and its metrics."""
        return regression_loss(self.config, policy, batch)
