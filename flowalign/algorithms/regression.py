"""Weighted regression on clean samples: the lower half of SFT and of RWR.

L = E[w(x0) w(t) mean ||output(x_t, t) - target||^2], with the sample's weight as its credit.

On the policy's own samples nearly all of the gradient is noise: a converged network is already the
mean of its targets. With a control variate b the part of the weights that all samples of a prompt
share is not regressed on single targets but on their mean, which the policy that drew the samples
knows:

    L = E[w(t) ((w(x0) - b) mean ||output - target||^2 + b mean ||output - output_old||^2)]

The gradient has the same expectation where output_old is the mean of the targets given x_t, and
only the spread of the weights is left to carry noise. Where it is not (an unconverged network, a
coarse solver), what falls away is the pull towards the solver's own law, which no reward asked for.
It is the baseline of policy gradients (Williams 1992) on a regression; our own.
Shapes: B samples, *S the latent shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.algorithms.forward import (
    draw_blank,
    draw_levels,
    level_weight,
    noised,
    output_error,
    sample_noise,
    with_blank,
)
from flowalign.algorithms.minibatches import MicroBatches, micro_batches, split_whole_groups
from flowalign.config.regression import RWRConfig, SFTConfig
from flowalign.gaussian import element_mean, full_precision
from flowalign.protocols import Path, Policy
from flowalign.types import Cond, Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressionBatch:
    """Clean samples with fresh noise at one level."""

    x0: Tensor  # (B, *S)
    eps: Tensor  # (B, *S) float32
    t: Tensor  # 0-dim float64
    credit: Tensor  # (B,) float32, the sample's weight
    baseline: Tensor  # (B,) float32, b; 0 without a control variate
    blank: Tensor  # (B,) bool, trained with the empty prompt
    cond: Cond
    weight: float  # part of the update's terms on all ranks


def unit_mean(weight: Tensor, counts: Tensor) -> Tensor:
    """`weight` (B,) where `counts` (B,), else 0, scaled so that what is left out changes no scale.

    The mean over all B samples then is the mean over those that count.
    """
    kept = torch.where(counts, weight.double(), 0.0)
    return (kept * (len(counts) / counts.sum().clamp(min=1))).float()


def group_baseline(credit: Tensor, valid: Tensor, group: Tensor) -> Tensor:
    """Mean credit of the valid samples of each sample's group, (B,); 0 where not valid.

    Without effect on the expected gradient for weights whose group mean is fixed (SFT's, RWR's
    softmax); for others the share 1 / n of n samples' signal is lost, as with every baseline
    that a sample is part of.
    """
    _, place = torch.unique(group, return_inverse=True)
    counts = torch.bincount(place, weights=valid.double())
    sums = torch.bincount(place, weights=torch.where(valid, credit, 0.0).double())
    means = sums / counts.clamp(min=1)
    return torch.where(valid, means[place], 0.0).float()


def regression_batches(
    config: SFTConfig | RWRConfig,
    path: Path,
    rollout: Rollout,
    credit: Tensor,
    generator: torch.Generator,
    *,
    batch_size: int,
    total: int,
) -> Iterator[Sequence[RegressionBatch]]:
    """One sequence per update; each draws its levels and its noise anew.

    All samples of an update are seen at the same levels, so that batches and ranks do not change
    it. Samples of weight 0 cost nothing, unless a control variate needs them.
    """
    baseline = torch.zeros_like(credit)
    if config.control_variate:
        baseline = group_baseline(credit, rollout.valid, rollout.group)
    trajectory, num_levels = rollout.trajectory, config.levels_per_sample
    portions = split_whole_groups(rollout.group, total, config.updates_per_rollout, generator)
    for rows, part in portions:
        levels = draw_levels(config.levels, path, num_levels, generator, rollout=trajectory.t)
        seed = int(torch.randint(2**62, (), generator=generator))
        rows = rows[(credit[rows] != 0) | (baseline[rows] != 0)]
        terms = part * total * num_levels

        def make(
            step: int, rows: Tensor, levels: Tensor = levels, seed: int = seed, terms: float = terms
        ) -> RegressionBatch:
            here = rows.to(trajectory.x.device)
            return RegressionBatch(
                x0=trajectory.x[here, -1],
                eps=sample_noise(rollout, rows, seed=seed, stream="regression", step=step),
                t=levels[step],
                credit=credit.to(here.device)[here],
                baseline=baseline.to(here.device)[here],
                blank=draw_blank(rollout, rows, config.prompt_dropout, seed=seed, step=step),
                cond=trajectory.cond.select(rows),
                weight=len(rows) / terms,
            )

        yield MicroBatches(
            parts=list(micro_batches(rows, list(range(num_levels)), batch_size)), make=make
        )


def regression_loss(
    config: SFTConfig | RWRConfig, policy: Policy, batch: RegressionBatch
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Mean over the batch of credit times weighted error, and its metrics."""
    path = policy.generator.path
    cond = with_blank(policy.generator, batch.cond, batch.blank)
    x = noised(path, batch.x0, batch.eps, batch.t)
    old = None
    if config.control_variate:
        with torch.no_grad(), policy.old():
            old = full_precision(policy.predict(x, batch.t, cond))
    pred = policy.predict(x, batch.t, cond)
    errors = output_error(path, pred, batch.x0, batch.eps, batch.t)
    terms = (batch.credit - batch.baseline) * errors
    metrics = {"error": errors.detach().mean(), "credit_max": batch.credit.max()}
    if old is not None:
        distance = element_mean((full_precision(pred) - old).square())
        terms = terms + batch.baseline * distance
        metrics["old_distance"] = distance.detach().mean()
    scale = level_weight(config.weight, path, batch.t, snr_gamma=config.snr_gamma)
    return float(scale) * terms.mean(), metrics
