"""Feynman-Kac steering: particles that are weighed and resampled on their way.

arXiv 2501.06848, algorithm 1, in log space. A look comes after the network's call of a step and
before the step, so that the prediction serves both, copies share it, and the reward belongs to the
state that is resampled. (The authors' code weighs a state one step later.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowalign.steering.potentials import terminal
from flowalign.steering.protocols import Chain, Finish, Value, Verdict
from flowalign.steering.resampling import Scheme, ancestors
from flowalign.steering.schedule import tempered
from flowalign.steering.weights import (
    Potential,
    Weights,
    effective_size,
    ended,
    equal_weights,
    normalised,
    proposed,
    resampled,
    weighed,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Steering:
    """How particles are weighed and resampled."""

    strength: float  # lambda
    potential: Potential
    scheme: Scheme
    looks: Sequence[int]  # steps whose states are judged
    ess_threshold: float  # resample below this share of K; 1: whenever the weights differ
    tempering: float | None = None  # share of K that the effective sample size keeps at a look


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What happened at one look of G groups."""

    step: int
    reward: Tensor  # (G, K)
    valid: Tensor  # (G, K)
    log_weight: Tensor  # (G, K), with this look's potential, before resampling
    strength: Tensor  # (G,), lambda
    ancestors: Tensor  # (G, K); the particle's own place where nothing was resampled
    resampled: Tensor  # (G,) bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Particles at their end, G groups of K."""

    finish: Finish
    weights: Weights
    history: Sequence[Look]


def feynman_kac(
    chain: Chain,
    value: Value,
    steering: Steering,
    *,
    groups: int,
    particles: int,
    on_look: Callable[[Look], None] = lambda look: None,
) -> Outcome:
    """Walk `groups` x `particles` particles to their end; `on_look` hears of every look."""
    rows = torch.arange(groups * particles)
    x = chain.start()
    weights = equal_weights(groups, particles)
    strength = torch.zeros(groups, dtype=torch.float64)
    history: list[Look] = []
    for step in range(chain.num_steps):
        pred = chain.predict(x, step, rows)
        if step in steering.looks and particles > 1:
            verdict = value.promise(x, pred, step, rows)
            look, weights = judge(weights, strength, verdict, steering, chain.uniform(step), step)
            strength = look.strength
            history.append(look)
            on_look(look)
            parents = (rows.view(groups, particles)[:, :1] + look.ancestors).flatten()
            x, pred = x[parents.to(x.device)], pred[parents.to(pred.device)]
        x, log_ratio = chain.advance(x, pred, step, rows)
        if log_ratio is not None:
            weights = proposed(weights, log_ratio.double().cpu().view(groups, particles))
    finish = value.finish(x, rows)
    reward, valid = of_groups(finish.verdict, groups, particles)
    full = torch.full_like(strength, steering.strength)
    return Outcome(
        finish=finish, weights=ended(weights, terminal, reward, valid, full), history=history
    )


def of_groups(verdict: Verdict, groups: int, particles: int) -> tuple[Tensor, Tensor]:
    """(reward, valid), (G, K) each."""
    shape = groups, particles
    return verdict.reward.view(shape), verdict.valid.view(shape)


def judge(
    past: Weights,
    before: Tensor,
    verdict: Verdict,
    steering: Steering,
    uniform: Tensor,
    step: int,
) -> tuple[Look, Weights]:
    """Weigh the particles, and resample the groups whose weights have become too unequal."""
    groups, particles = past.log_weight.shape
    reward, valid = of_groups(verdict, groups, particles)
    strength = torch.full_like(before, steering.strength)
    if steering.tempering is not None:
        strength = tempered(
            past,
            steering.potential,
            reward,
            valid,
            before=before,
            full=steering.strength,
            share=steering.tempering,
        )
    heavier = weighed(past, steering.potential, reward, valid, strength)
    few = effective_size(heavier.log_weight) < steering.ess_threshold * particles
    # Resampling equal weights would only add noise; rounding must not decide that.
    differ = heavier.log_weight.amax(dim=1) > heavier.log_weight.amin(dim=1)
    chosen = few & differ
    parents = ancestors(steering.scheme(normalised(heavier.log_weight), uniform))
    own = torch.arange(particles).expand_as(parents)
    parents = torch.where(chosen[:, None], parents, own)
    look = Look(
        step=step,
        reward=reward,
        valid=valid,
        log_weight=heavier.log_weight,
        strength=strength,
        ancestors=parents,
        resampled=chosen,
    )
    return look, resampled(heavier, parents, chosen)
