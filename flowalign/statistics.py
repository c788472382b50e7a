"""Honest numbers for "A against B": paired intervals, exact tests, and the words they allow.

The unit of a claim about algorithms is a training seed, never a prompt: many prompts of one seed
say nothing about the next seed. Arrays are (n,) over paired units (seeds, or prompts when the
statement is about these two models only), or (n, K) over seeds and K tasks. Torch-free.

Metrics as in rliable (arXiv 2108.13264); its percentile bootstrap undercovers for n < 20, so the
inference here is the Student-t interval and the exact sign-flip test instead.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

EXACT_UP_TO = 16  # pairs; 2^16 sign patterns
MIN_PAIRS = 6  # the smallest n at which the exact test can reach p <= 0.05
PAIRS_FOR_A_CLAIM = 10
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate with its confidence interval."""

    mean: float
    low: float  # -inf when n < 2
    high: float  # inf when n < 2
    n: int  # independent units
    level: float  # confidence, for example 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A against B on one metric, higher is better, with the only words that may be printed."""

    name_a: str
    name_b: str
    metric: str
    n: int  # pairs
    mean_a: float
    mean_b: float
    iqm_a: float
    iqm_b: float
    difference: Interval  # of a - b
    improvement: Interval  # P(a > b) over pairs, ties half
    worst: float  # smallest difference
    p: float  # two-sided sign-flip test, after Holm where the caller gave it
    words: str


def mean_interval(values: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of independent `values` (n,) with the Student-t interval of n - 1 degrees of freedom."""
    x = _finite(values)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean=mean, low=-math.inf, high=math.inf, n=len(x), level=level)
    half = t_quantile((1 + level) / 2, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean=mean, low=mean - half, high=mean + half, n=len(x), level=level)


def paired_difference(after: ArrayLike, before: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of `after - before` (n,) with its Student-t interval."""
    return mean_interval(_differences(after, before), level=level)


def sign_flip_test(differences: ArrayLike, *, seed: int = 0, flips: int = 100_000) -> float:
    """Two-sided p of the hypothesis that `differences` (n,) are symmetric about 0.

    The share of sign patterns whose |sum| is at least the observed one: all 2^n patterns for
    n <= 16, otherwise `flips` patterns keyed by `seed` plus the observed one, so that p > 0.
    """
    d = _finite(differences)
    # Sums that are equal on paper differ in the last bits; they count as reached.
    observed = abs(float(d.sum())) - 1e-12 * float(np.abs(d).sum())
    if len(d) <= EXACT_UP_TO:
        bits = (np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ d) >= observed))
    draw, reached, block = keyed_generator(seed, "sign_flip", len(d)), 0, 4096
    for start in range(0, flips, block):
        signs = 1 - 2 * draw.integers(0, 2, size=(min(block, flips - start), len(d)))
        reached += int(np.sum(np.abs(signs @ d) >= observed))
    return (reached + 1) / (flips + 1)


def wilson_interval(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """Share `successes / n` with Wilson's score interval; `successes` may hold halves for ties."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes {successes} of n = {n}")
    z = normal_quantile((1 + level) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return Interval(mean=share, low=low, high=high, n=n, level=level)


def interquartile_mean(values: ArrayLike) -> float:
    """Mean without the floor(n / 4) smallest and largest values, over all entries."""
    x = np.sort(_finite(np.ravel(values)))
    cut = len(x) // 4
    return float(x[cut : len(x) - cut].mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of one family, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def probability_of_improvement(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Interval:
    """P(a > b) over pairs (n,), ties half, with Wilson's interval."""
    d = _differences(a, b)
    wins = float(np.sum(d > 0)) + 0.5 * float(np.sum(d == 0))
    return wilson_interval(wins, len(d), level=level)


def compare(
    a: ArrayLike,
    b: ArrayLike,
    *,
    name_a: str = "A",
    name_b: str = "B",
    metric: str = "score",
    smallest_effect: float = 0.0,
    in_sample: bool = False,
    gate_green: bool | None = None,
    adjusted_p: float | None = None,
    seed: int = 0,
) -> Comparison:
    """A against B over paired training seeds, (n,) or (n, K tasks); higher is better.

    `smallest_effect` is the difference worth a claim, `in_sample` marks the trained reward
    itself, `gate_green` is the reward-hacking gate (None: not measured), `adjusted_p` the p after
    Holm when the comparison belongs to a family.
    """
    x, y = _table(a), _table(b)
    if x.shape != y.shape:
        raise ValueError(f"pairs need equal shapes, got {x.shape} and {y.shape}")
    d = (x - y).mean(axis=1)
    p = sign_flip_test(d, seed=seed) if adjusted_p is None else adjusted_p
    tasks = np.sign((x - y).mean(axis=0))
    missing = _missing_conditions(d, tasks, smallest_effect, gate_green)
    if len(d) < MIN_PAIRS:
        words = f"not enough seeds (min p = {2.0 ** (1 - len(d)):g} at {len(d)})"
    elif in_sample:
        words = f"in-sample: {metric} was trained on, so this is no claim of quality"
    elif p <= ALPHA:
        words = _claim(name_a, name_b, metric, float(d.mean()), missing)
    else:
        words = _no_difference(d, smallest_effect)
    return Comparison(
        name_a=name_a,
        name_b=name_b,
        metric=metric,
        n=len(d),
        mean_a=float(x.mean()),
        mean_b=float(y.mean()),
        iqm_a=interquartile_mean(x),
        iqm_b=interquartile_mean(y),
        difference=mean_interval(d),
        improvement=probability_of_improvement(x.mean(axis=1), y.mean(axis=1)),
        worst=float(d.min()),
        p=p,
        words=words,
    )


def equivalent(differences: ArrayLike, smallest_effect: float, *, alpha: float = ALPHA) -> bool:
    """Two one-sided t-tests: is the mean inside +-`smallest_effect` at level `alpha`?"""
    d = _finite(differences)
    if smallest_effect <= 0 or len(d) < 2:
        return False
    inside = mean_interval(d, level=1 - 2 * alpha)
    return -smallest_effect < inside.low and inside.high < smallest_effect


def detectable_effect(differences: ArrayLike, *, power: float = 0.8) -> float:
    """Mean difference that n such pairs find with `power`, (t_{.975} + t_{power}) s / sqrt(n).

    The usual approximation of the noncentral t; for n below 8 the exact test needs more.
    """
    d = _finite(differences)
    factor = t_quantile(1 - ALPHA / 2, len(d) - 1) + t_quantile(power, len(d) - 1)
    return factor * float(d.std(ddof=1)) / math.sqrt(len(d))


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # not at import: flowalign starts without scipy

    return float(stdtrit(degrees, probability))


def normal_quantile(probability: float) -> float:
    """Quantile of the standard normal."""
    from scipy.special import ndtri

    return float(ndtri(probability))


def keyed_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """A generator that is a function of its key alone, as `flowalign.randomness` has for torch."""
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _claim(name_a: str, name_b: str, metric: str, mean: float, missing: Sequence[str]) -> str:
    winner, loser = (name_a, name_b) if mean > 0 else (name_b, name_a)
    if not missing:
        return f"{winner} beats {loser} on {metric}"
    return f"evidence that {winner} exceeds {loser} on {metric}; missing: {', '.join(missing)}"


def _no_difference(d: Array, smallest_effect: float) -> str:
    if equivalent(d, smallest_effect):
        return f"equivalent within +-{smallest_effect:g}"
    effect = detectable_effect(d)
    return f"no difference shown (n = {len(d)}, could detect {effect:.3g} with 80 % power)"


def _missing_conditions(
    d: Array, task_signs: Array, smallest_effect: float, gate_green: bool | None
) -> list[str]:
    """What stands between evidence and a claim."""
    missing = []
    if len(d) < PAIRS_FOR_A_CLAIM:
        missing.append(f"n >= {PAIRS_FOR_A_CLAIM}")
    if abs(float(d.mean())) < smallest_effect:
        missing.append(f"a difference of at least {smallest_effect:g}")
    if 3 * int(np.sum(task_signs == np.sign(d.mean()))) < 2 * len(task_signs):
        missing.append("the same sign on 2/3 of the tasks")
    if not gate_green:
        missing.append(
            "the reward-hacking gate was not measured"
            if gate_green is None
            else "a green reward-hacking gate"
        )
    return missing


def _finite(values: ArrayLike) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise ValueError(f"expected finite numbers (n,) with n >= 1, got shape {x.shape}")
    return x


def _differences(a: ArrayLike, b: ArrayLike) -> Array:
    x, y = _finite(a), _finite(b)
    if len(x) != len(y):
        raise ValueError(f"pairs need equal lengths, got {len(x)} and {len(y)}")
    return x - y


def _table(values: ArrayLike) -> Array:
    """(n,) or (n, K) as (n, K)."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim not in (1, 2) or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"expected finite numbers (n,) or (n, K), got shape {x.shape}")
    return x.reshape(len(x), -1)
