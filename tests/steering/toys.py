"""Chains with known answers: a Gaussian in one dimension, and three letters by enumeration.

Both are whole `Chain`s and `Value`s, so that the engine itself runs in the tests. G independent
runs of K particles are one call.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowalign.steering.feynman_kac import Outcome, Steering, feynman_kac
from flowalign.steering.potentials import POTENTIALS
from flowalign.steering.protocols import Finish, Verdict
from flowalign.steering.resampling import SCHEMES
from flowalign.steering.schedule import look_steps
from flowalign.steering.weights import log_evidence

MEAN, SD = 0.5, 0.8


@dataclass(kw_only=True)
class GaussianChain:
    """The exact reverse chain of x_t = alpha_t x_0 + sigma_t eps with data N(0.5, 0.8^2).

    alpha_t = cos(pi t / 2 T); the prediction is the posterior mean of x_0.
    """

    groups: int
    particles: int
    seed: int = 0
    num_steps: int = 20
    push: float = 0.0  # shift of the proposal's mean, in standard deviations
    key: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.key = torch.Generator().manual_seed(self.seed)

    def alpha(self, step: int) -> float:
        """Of the state before `step`; pure noise before step 0."""
        return math.cos(0.5 * math.pi * (self.num_steps - step) / self.num_steps)

    def noise(self, count: int) -> Tensor:
        return torch.randn(count, 1, generator=self.key, dtype=torch.float64)

    def start(self) -> Tensor:
        return self.noise(self.groups * self.particles)

    def predict(self, x: Tensor, step: int, rows: Tensor) -> Tensor:
        a = self.alpha(step)
        variance = a * a * SD * SD + 1.0 - a * a
        return MEAN + a * SD * SD / variance * (x - a * MEAN)

    def law(self, x: Tensor, step: int) -> tuple[Tensor, float]:
        """Mean (n, 1) and standard deviation of the states after `step`."""
        a, b = self.alpha(step), self.alpha(step + 1)
        c = a / b
        before = b * b * SD * SD + 1.0 - b * b
        now = c * c * before + 1.0 - c * c
        mean = b * MEAN + c * before / now * (x - a * MEAN)
        return mean, math.sqrt(before - (c * before) ** 2 / now)

    def advance(
        self, x: Tensor, pred: Tensor, step: int, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        mean, std = self.law(x, step)
        z = self.noise(len(x))
        if not self.push:
            return mean + std * z, None
        shifted = z + self.push
        return mean + std * shifted, (0.5 * z.square() - 0.5 * shifted.square())[:, 0]

    def uniform(self, step: int) -> Tensor:
        return torch.rand(self.groups, self.particles, generator=self.key, dtype=torch.float64)


def everybody(reward: Tensor) -> Verdict:
    return Verdict(reward=reward, valid=torch.ones(len(reward), dtype=torch.bool))


@dataclass(kw_only=True)
class OnPrediction:
    """A reward of the predicted end on the way, and of the true end."""

    reward: Callable[[Tensor], Tensor]  # (n,) of (n,)
    missing: Callable[[Tensor, int], Tensor] | None = None  # (n,) bool of (n,), step; -1 is the end

    def verdict(self, x0: Tensor, step: int) -> Verdict:
        if self.missing is None:
            return everybody(self.reward(x0))
        valid = ~self.missing(x0, step)
        return Verdict(reward=torch.where(valid, self.reward(x0), torch.nan), valid=valid)

    def promise(self, x: Tensor, pred: Tensor, step: int, rows: Tensor) -> Verdict:
        return self.verdict(pred[:, 0], step)

    def finish(self, x: Tensor, rows: Tensor) -> Finish:
        self.ends = x[:, 0]
        return Finish(verdict=self.verdict(x[:, 0], -1), samples=[], terms={})


@dataclass(frozen=True, kw_only=True)
class Tilted:
    """log Z, mean and variance of p(x) exp(lambda r(x))."""

    log_z: float
    mean: float
    variance: float


def linear(x: Tensor) -> Tensor:
    return x


def quadratic(x: Tensor) -> Tensor:
    return -0.5 * (x - 2.0).square()


def tilted_linear(strength: float) -> Tilted:
    """N(m + lambda s^2, s^2), log Z = lambda m + (lambda s)^2 / 2."""
    return Tilted(
        log_z=strength * MEAN + 0.5 * (strength * SD) ** 2,
        mean=MEAN + strength * SD**2,
        variance=SD**2,
    )


def tilted_quadratic(strength: float) -> Tilted:
    """Precision 1 / s^2 + lambda, mean v (m / s^2 + 2 lambda)."""
    v = 1.0 / (1.0 / SD**2 + strength)
    mean = v * (MEAN / SD**2 + 2.0 * strength)
    exponent = -0.5 * (MEAN**2 / SD**2 + 4.0 * strength - mean**2 / v)
    return Tilted(log_z=0.5 * math.log(v) - math.log(SD) + exponent, mean=mean, variance=v)


LETTERS, LENGTH = 3, 4
WORDS = torch.tensor(list(itertools.product(range(LETTERS), repeat=LENGTH)))  # (81, 4)


@dataclass(kw_only=True)
class WordChain:
    """Words of 4 letters out of 3, uncovered from the left by a Markov law; -1 is still hidden."""

    groups: int
    particles: int
    seed: int = 0
    num_steps: int = LENGTH
    key: torch.Generator = field(init=False)
    law: Tensor = field(init=False)  # (4 letters or none before, 3)

    def __post_init__(self) -> None:
        self.key = torch.Generator().manual_seed(self.seed)
        fixed = torch.Generator().manual_seed(17)
        self.law = torch.rand(LETTERS + 1, LETTERS, generator=fixed, dtype=torch.float64) + 0.1
        self.law = self.law / self.law.sum(dim=1, keepdim=True)

    def start(self) -> Tensor:
        return torch.full((self.groups * self.particles, LENGTH), -1)

    def predict(self, x: Tensor, step: int, rows: Tensor) -> Tensor:
        return x

    def advance(
        self, x: Tensor, pred: Tensor, step: int, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        before = x[:, step - 1] if step else torch.full((len(x),), LETTERS)
        letter = torch.multinomial(self.law[before], 1, generator=self.key)[:, 0]
        x = x.clone()
        x[:, step] = letter
        return x, None

    def uniform(self, step: int) -> Tensor:
        return torch.rand(self.groups, self.particles, generator=self.key, dtype=torch.float64)

    def law_of_words(self) -> Tensor:
        """(81,) probability of each word."""
        chance = self.law[LETTERS][WORDS[:, 0]]
        for place in range(1, LENGTH):
            chance = chance * self.law[WORDS[:, place - 1], WORDS[:, place]]
        return chance


WORD_REWARD = 2.0 * torch.rand(
    len(WORDS), generator=torch.Generator().manual_seed(5), dtype=torch.float64
)


def number_of(words: Tensor) -> Tensor:
    """(n,) place in WORDS."""
    return (words * LETTERS ** torch.arange(LENGTH - 1, -1, -1)).sum(dim=1)


@dataclass(kw_only=True)
class OnWords:
    """Promises are the reward of the word with hidden letters taken as 0: a poor guess."""

    def promise(self, x: Tensor, pred: Tensor, step: int, rows: Tensor) -> Verdict:
        return everybody(WORD_REWARD[number_of(x.clamp(min=0))])

    def finish(self, x: Tensor, rows: Tensor) -> Finish:
        self.ends = number_of(x).double()
        return Finish(verdict=everybody(WORD_REWARD[number_of(x)]), samples=[], terms={})


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over runs and its standard error."""

    value: float
    error: float

    def off(self, truth: float) -> float:
        """Distance from the truth in standard errors."""
        return abs(self.value - truth) / self.error


def evidence(outcome: Outcome, log_z: float) -> Estimate:
    """Mean of Z-hat / Z: 1 when unbiased."""
    ratio = torch.exp(log_evidence(outcome.weights) - log_z)
    return Estimate(value=float(ratio.mean()), error=float(ratio.std()) / math.sqrt(len(ratio)))


def expectation(outcome: Outcome, f: Tensor) -> Estimate:
    """E[Z-hat sum_k w_k f_k] / E[Z-hat] of f (G, K): the target's mean of f."""
    log_share = outcome.weights.log_weight + outcome.weights.log_z[:, None]
    share = torch.exp(log_share - log_share.max())
    total = share.sum(dim=1).mean()
    value = float((share * f).sum(dim=1).mean() / total)
    spread = (share * (f - value)).sum(dim=1) / total
    return Estimate(value=value, error=float(spread.std()) / math.sqrt(len(spread)))


def steering(
    potential: str = "difference",
    scheme: str = "systematic",
    *,
    strength: float = 1.0,
    num_steps: int = 20,
    looks: int = 4,
    ess_threshold: float = 1.0,
    tempering: float | None = None,
) -> Steering:
    noise = torch.ones(num_steps, dtype=torch.float64)
    return Steering(
        strength=strength,
        potential=POTENTIALS[potential],
        scheme=SCHEMES[scheme],
        looks=look_steps(noise, looks, start=0.2, stop=0.8),
        ess_threshold=ess_threshold,
        tempering=tempering,
    )


def gaussian_run(
    settings: Steering,
    reward: Callable[[Tensor], Tensor],
    *,
    groups: int = 4000,
    particles: int = 8,
    seed: int = 0,
    push: float = 0.0,
) -> tuple[Outcome, Tensor]:
    """The outcome, and the ends (G, K)."""
    chain = GaussianChain(groups=groups, particles=particles, seed=seed, push=push)
    value = OnPrediction(reward=reward)
    outcome = feynman_kac(chain, value, settings, groups=groups, particles=particles)
    return outcome, value.ends.view(groups, particles)
