"""Weights of particles, in log space until one normalisation.

A look multiplies every particle's weight by its potential. Where a group is resampled, the weights'
mean goes into log Z and they start again from 1; where it is not, they are carried. Then
E[Z] = E exp(lambda r(x0)) and E[Z sum_k w_k f(x_k)] / E[Z] = E_target f for any number of
particles, whatever potentials, looks and unbiased resampling (Del Moral 2004, theorem 7.4.2); also
where these are chosen by looking at the particles so far, because the terminal potential divides
by the product that the lineage really had.

Shapes: G groups, K particles of each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The particles' weights and what their lineages have seen, float64 on the CPU."""

    log_weight: Tensor  # (G, K), since the group was last resampled
    log_product: Tensor  # (G, K), all potentials of the lineage
    last: Tensor  # (G, K), newest valid reward of the lineage; NaN before one
    highest: Tensor  # (G, K), -inf before one
    summed: Tensor  # (G, K)
    log_z: Tensor  # (G,), of the resamplings so far


class Potential(Protocol):
    """A weight for what a lineage's rewards promise."""

    def __call__(self, past: Weights, reward: Tensor, strength: Tensor) -> Tensor:
        """log G (G, K) of rewards (G, K) after `past`; `strength` (G, 1) is lambda."""
        ...


def equal_weights(groups: int, particles: int) -> Weights:
    """The start: all weights 1."""
    zero = torch.zeros(groups, particles, dtype=torch.float64)
    return Weights(
        log_weight=zero,
        log_product=zero,
        last=zero + torch.nan,
        highest=zero - torch.inf,
        summed=zero,
        log_z=zero[:, 0],
    )


def log_mean(log_weight: Tensor) -> Tensor:
    """log of the mean weight of each group, (G,)."""
    return torch.logsumexp(log_weight, dim=1) - math.log(log_weight.shape[1])


def normalised(log_weight: Tensor) -> Tensor:
    """Weights of sum 1 in each group, (G, K)."""
    return torch.softmax(log_weight, dim=1)


def effective_size(log_weight: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2, (G,), from 1 to K (Kong 1992)."""
    twice = torch.logsumexp(2.0 * log_weight, dim=1)
    return torch.exp(2.0 * torch.logsumexp(log_weight, dim=1) - twice)


def log_potentials(
    past: Weights, potential: Potential, reward: Tensor, valid: Tensor, strength: Tensor
) -> Tensor:
    """log G (G, K) at a look; `strength` (G,).

    A particle without a valid reward is judged by the newest one of its lineage; before there is
    one, its potential is the weighted mean of the others', so that its share stays as it is. Both
    are choices of an intermediate potential and leave the target alone.
    """
    known_reward = torch.where(valid, reward, past.last)
    known = known_reward.isfinite()
    log_g = potential(past, torch.where(known, known_reward, 0.0), strength[:, None])
    if bool(known.all()):
        return log_g
    seen = torch.where(known, past.log_weight, -torch.inf)
    neutral = torch.logsumexp(seen + log_g, dim=1) - torch.logsumexp(seen, dim=1)
    neutral = torch.where(known.any(dim=1), neutral, 0.0)
    return torch.where(known, log_g, neutral[:, None])


def weighed(
    past: Weights, potential: Potential, reward: Tensor, valid: Tensor, strength: Tensor
) -> Weights:
    """The weights after a look with rewards (G, K), valid (G, K) and lambda `strength` (G,)."""
    log_g = log_potentials(past, potential, reward, valid, strength)
    known_reward = torch.where(valid, reward, past.last)
    known = known_reward.isfinite()
    return replace(
        past,
        log_weight=past.log_weight + log_g,
        log_product=past.log_product + log_g,
        last=known_reward,
        highest=torch.where(known, torch.maximum(past.highest, known_reward), past.highest),
        summed=past.summed + torch.where(known, known_reward, 0.0),
    )


def proposed(past: Weights, log_ratio: Tensor) -> Weights:
    """The weights after a step drawn from another law q than the chain's p; log p / q (G, K)."""
    return replace(past, log_weight=past.log_weight + log_ratio)


def resampled(past: Weights, ancestors: Tensor, groups: Tensor) -> Weights:
    """The weights after `groups` (G,) bool were resampled with `ancestors` (G, K) int64.

    In other groups every particle must be its own ancestor.
    """

    def of_ancestors(value: Tensor) -> Tensor:
        return value.gather(1, ancestors)

    return Weights(
        log_weight=torch.where(groups[:, None], 0.0, past.log_weight),
        log_product=of_ancestors(past.log_product),
        last=of_ancestors(past.last),
        highest=of_ancestors(past.highest),
        summed=of_ancestors(past.summed),
        log_z=past.log_z + torch.where(groups, log_mean(past.log_weight), 0.0),
    )


def ended(
    past: Weights, terminal: Potential, reward: Tensor, valid: Tensor, strength: Tensor
) -> Weights:
    """The weights at the end, with the rewards of what was really drawn.

    An end without a valid reward weighs 0: the target is p(x) exp(lambda r(x)) where r is defined.
    """
    log_g = terminal(past, torch.where(valid, reward, 0.0), strength[:, None])
    log_g = torch.where(valid, log_g, -torch.inf)
    return replace(past, log_weight=past.log_weight + log_g, log_product=past.log_product + log_g)


def log_evidence(weights: Weights) -> Tensor:
    """Estimate of log Z = log E exp(lambda r(x0)), (G,); exp of it is unbiased."""
    return weights.log_z + log_mean(weights.log_weight)
