"""Supervised fine-tuning on the forward process, on data or on the best of each group.

Flow matching (arXiv 2210.02747) on rectified flows, DDPM's loss (2006.11239) for eps, v and x0.
"Online SFT" on the best of each group is the baseline of Flow-GRPO (2505.05470, appendix C).
Shapes: B samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.advantages import advantages
from flowalign.algorithms.forward import check_level_weight
from flowalign.algorithms.minibatches import places_in_group
from flowalign.algorithms.regression import (
    RegressionBatch,
    regression_batches,
    regression_loss,
    unit_mean,
)
from flowalign.config.regression import SFTConfig
from flowalign.protocols import Path, Policy
from flowalign.types import Needs, Rollout, Scored


def best_of_group(score: Tensor, valid: Tensor, group: Tensor, best: int) -> Tensor:
    """(B,) bool: the `best` valid samples of each group by score, the first ones among equals.

    (Flow-GRPO's code takes every sample that ties with the maximum, so that a group without
    spread counts as many times as it has members.)
    """
    ranking = torch.where(valid, score.double(), -torch.inf)
    order = torch.argsort(ranking, descending=True, stable=True)
    chosen = torch.zeros(len(group), dtype=torch.bool)
    chosen[order] = places_in_group(group[order]) < best
    return chosen & valid


@dataclass(frozen=True, slots=True)
class SFT:
    """Each chosen sample has the same weight; with data and `best: null` that is plain SFT."""

    config: SFTConfig
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
        """Weights (B,): equal for the chosen samples, with mean 1 over all."""
        chosen = torch.stack([scored.valid[name] for name in scored.weights]).all(dim=0)
        if self.config.best is not None:
            score = advantages(scored, self.config.advantage)
            chosen = best_of_group(score, chosen, scored.group, self.config.best)
        return unit_mean(torch.ones(len(chosen)), chosen)

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
        """Mean error of the chosen samples, and its metrics."""
        return regression_loss(self.config, policy, batch)
