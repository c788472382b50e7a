"""Intervals and tests against closed forms, and the engine against itself (A/A)."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from flowalign import statistics as st


def draws(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_t_interval_equals_scipy() -> None:
    x = draws(1, 9)
    ours = st.mean_interval(x)
    low, high = stats.t.interval(0.95, 8, loc=x.mean(), scale=stats.sem(x))
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-12)
    assert st.paired_difference(x, x[::-1]).mean == pytest.approx(0, abs=1e-15)


def test_one_value_has_no_interval() -> None:
    one = st.mean_interval([0.3])
    assert (one.mean, one.low, one.high, one.n) == (0.3, -math.inf, math.inf, 1)


def test_sign_flip_is_the_enumeration() -> None:
    d = draws(2, 7) + 0.4
    sums = [
        abs(sum(s * v for s, v in zip(signs, d, strict=True)))
        for signs in itertools.product((1, -1), repeat=7)
    ]
    share = np.mean([value >= abs(d.sum()) - 1e-12 for value in sums])
    assert st.sign_flip_test(d) == pytest.approx(share)


@pytest.mark.parametrize("n", [1, 5, 6, 10, 16])
def test_smallest_possible_p(n: int) -> None:
    # All differences equal: only the two extreme patterns reach the sum.
    assert st.sign_flip_test(np.ones(n)) == 2.0 ** (1 - n)


def test_no_difference_has_p_one() -> None:
    assert st.sign_flip_test(np.zeros(8)) == 1.0


def test_random_flips_agree_with_the_exact_test_and_are_reproducible() -> None:
    d = draws(3, 16) + 0.35
    exact = st.sign_flip_test(d)
    longer = np.append(d, 0.0)  # a zero changes no sum: the exact p stays
    p = st.sign_flip_test(longer, seed=4)
    assert p == st.sign_flip_test(longer, seed=4)
    assert abs(p - exact) < 4 * math.sqrt(exact * (1 - exact) / 100_000)
    assert p != st.sign_flip_test(longer, seed=5)


def test_wilson_closed_form() -> None:
    ours = st.wilson_interval(7, 10)
    theirs = stats.binomtest(7, 10).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    assert st.wilson_interval(0, 5).low == 0.0


def test_interquartile_mean_is_a_trimmed_mean() -> None:
    x = draws(5, 13)
    assert st.interquartile_mean(x) == pytest.approx(stats.trim_mean(x, 0.25))
    assert st.interquartile_mean([0, 1, 2, 1000]) == 1.5


def test_holm_by_hand() -> None:
    assert st.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert st.holm([0.9, 0.8]) == [1.0, 1.0]


def test_probability_of_improvement_counts_ties_half() -> None:
    assert st.probability_of_improvement([1, 2, 3, 4], [0, 2, 4, 3]).mean == 0.625


@pytest.mark.parametrize("bad", [[], [1.0, math.nan], [[1.0], [2.0]]])
def test_meaningless_numbers_are_refused(bad: list) -> None:
    with pytest.raises(ValueError, match="finite"):
        st.mean_interval(bad)


def test_unpaired_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="equal lengths"):
        st.paired_difference([1, 2, 3], [1, 2])


@pytest.mark.parametrize("n", range(1, 6))
def test_too_few_seeds_get_no_comparison_words(n: int) -> None:
    result = st.compare(np.full(n, 9.0), np.zeros(n), gate_green=True)
    assert result.words == f"not enough seeds (min p = {2.0 ** (1 - n):g} at {n})"


def test_five_seeds_words_are_as_promised() -> None:
    assert st.compare(np.ones(5), np.zeros(5)).words == "not enough seeds (min p = 0.0625 at 5)"


def test_words_follow_the_evidence() -> None:
    noise = draws(6, 12) * 0.01
    clear = partial(st.compare, name_a="NFT", name_b="GRPO", metric="strict")
    full = clear(noise + 1, np.zeros(12), gate_green=True, smallest_effect=0.5)
    assert full.words == "NFT beats GRPO on strict"
    ungated = clear(noise + 1, np.zeros(12))
    assert ungated.words.startswith("evidence that NFT exceeds GRPO on strict; missing: the rew")
    small = clear(noise[:8] + 1, np.zeros(8), gate_green=True)
    assert small.words.endswith("missing: n >= 10")
    tiny = clear(noise + 0.1, np.zeros(12), gate_green=True, smallest_effect=0.5)
    assert "a difference of at least 0.5" in tiny.words
    trained = clear(noise + 1, np.zeros(12), gate_green=True, in_sample=True)
    assert trained.words.startswith("in-sample")


def test_equality_needs_its_own_test() -> None:
    noise = draws(7, 10) * 0.01
    assert st.compare(noise, np.zeros(10), smallest_effect=0.5).words == "equivalent within +-0.5"
    loose = draws(7, 10)
    assert st.compare(loose, np.zeros(10), smallest_effect=0.01).words.startswith("no difference")


def test_opposite_tasks_block_a_claim() -> None:
    a = np.tile([2.0, -0.1, -0.1], (12, 1)) + draws(8, 12, 3) * 0.01
    result = st.compare(a, np.zeros((12, 3)), gate_green=True)
    assert "the same sign on 2/3 of the tasks" in result.words


def test_swapping_mirrors_every_number() -> None:
    for n in (10, 24):
        a, b = draws(9, n) + 0.5, draws(10, n)
        ab, ba = st.compare(a, b), st.compare(b, a, name_a="B", name_b="A")
        assert ab.p == ba.p
        assert ab.difference.mean == -ba.difference.mean
        assert (ab.difference.low, ab.difference.high) == (-ba.difference.high, -ba.difference.low)
        assert ab.improvement.mean == pytest.approx(1 - ba.improvement.mean, abs=1e-15)
        assert ab.words == ba.words


def false_better(n: int, experiments: int, detect) -> float:
    rows = draws(11, experiments, n) * 0.2
    return float(np.mean([detect(row) for row in rows]))


def test_equal_algorithms_rarely_look_different() -> None:
    rate = false_better(10, 800, lambda d: st.sign_flip_test(d) <= 0.05)
    assert 0.03 <= rate <= 0.07


def test_a_real_effect_is_found() -> None:
    rows = draws(12, 400, 10) + 1.0
    assert 0.75 <= np.mean([st.sign_flip_test(d) <= 0.05 for d in rows]) <= 0.87


def percentile_bootstrap_misses(d: np.ndarray) -> bool:
    """What we do not do: the interval of 1,000 resampled means."""
    picks = np.random.default_rng(13).integers(0, len(d), size=(1000, len(d)))
    low, high = np.quantile(d[picks].mean(axis=1), [0.025, 0.975])
    return not low <= 0 <= high


def t_interval_misses(d: np.ndarray) -> bool:
    ours = st.mean_interval(d)
    return not ours.low <= 0 <= ours.high


def test_t_interval_covers_where_the_percentile_bootstrap_does_not() -> None:
    assert 0.03 <= false_better(5, 800, t_interval_misses) <= 0.07
    assert false_better(5, 800, percentile_bootstrap_misses) > 0.12
