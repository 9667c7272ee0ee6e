"""The statistics of comparisons: against scipy, by simulation, and laws of corrections and letters."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from attnlab.comparison import statistics
from attnlab.comparison.statistics import holm, interval, letters, paired, pairwise

A, B = [0.91, 0.94, 0.90, 0.93, 0.95], [0.88, 0.92, 0.89, 0.88, 0.93]


def test_interval_and_paired_test_agree_with_scipy() -> None:
    ours, theirs = interval(A), stats.t.interval(0.95, len(A) - 1, np.mean(A), stats.sem(A))
    assert (ours.low, ours.high) == pytest.approx(theirs)
    difference, test = paired(A, B), stats.ttest_rel(A, B)
    assert difference.p == pytest.approx(test.pvalue)
    assert (difference.low, difference.high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_overlapping_splits_widen_the_interval() -> None:
    plain, corrected = interval(A), interval(A, overlap=0.25)
    assert corrected.half_width / plain.half_width == pytest.approx(np.sqrt((1 / 5 + 0.25) / (1 / 5)))
    assert paired(A, B, overlap=0.25).p > paired(A, B).p


def test_intervals_cover_the_mean_in_95_of_100_samples() -> None:
    samples = np.random.default_rng(0).normal(0.7, 0.1, (4_000, 5))
    covered = [(each := interval(sample)).low <= 0.7 <= each.high for sample in samples.tolist()]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_detectable_difference_is_detected_with_the_stated_power() -> None:
    sd, n = 0.3, 5
    error = sd / np.sqrt(n)
    shift = statistics._detectable(n) * error
    samples = np.random.default_rng(0).normal(shift, sd, (4_000, n))
    detected = stats.ttest_1samp(samples, 0, axis=1).pvalue < statistics.LEVEL
    assert detected.mean() == pytest.approx(statistics.POWER, abs=0.02)


def test_single_seeds_and_equal_differences() -> None:
    assert interval([0.5]).low == -np.inf
    single = paired([0.5], [0.25])
    assert (single.p, single.detectable, single.mean) == (1.0, np.inf, 0.25)
    assert paired(A, A).p == 1.0
    with pytest.raises(ValueError):
        paired([0.5], [0.25, 0.5])


def test_equal_differences_of_a_small_test_set_are_not_certain() -> None:
    """By simulation: two mechanisms of the same quality, and a test set of 30 examples."""
    generator = np.random.default_rng(0)
    for n in (2, 3):
        scores = generator.binomial(30, 0.95, (2, 1_000, n)) / 30
        detected = [paired(a, b).p < statistics.LEVEL for a, b in zip(*scores.tolist(), strict=True)]
        assert np.mean(detected) < 0.07
    assert paired([0.75] * 5, [0.25] * 5).p < 0.01  # which no chance explains
    assert paired([7e-14] * 2, [2e-14] * 2).low < 0  # in any unit


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm(p_values: list[float]) -> None:
    corrected = holm(p_values)
    m = len(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    assert min(corrected) == pytest.approx(min(1, m * min(p_values)))
    for (p, c), (q, d) in combinations(zip(p_values, corrected, strict=True), 2):
        assert (p - q) * (c - d) >= 0  # the order is kept
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(st.integers(1, 6), st.data())
def test_names_share_a_letter_exactly_if_they_are_not_distinct(count: int, data: st.DataObject) -> None:
    names = [f"m{i}" for i in range(count)]
    distinct = {frozenset(pair): data.draw(st.booleans()) for pair in combinations(names, 2)}
    means = {name: float(i) for i, name in enumerate(names)}
    given_letters = letters(means, distinct, best_first=True)
    assert all(given_letters.values())
    assert "a" in given_letters[names[-1]]
    for pair, differ in distinct.items():
        first, second = (set(given_letters[name]) for name in pair)
        assert bool(first & second) != differ


def test_pairwise_compares_every_two() -> None:
    differences, corrected = pairwise({"a": A, "b": B, "c": [0.1, 0.2, 0.1, 0.3, 0.2]})
    assert differences[frozenset("ab")].mean == pytest.approx(np.mean(A) - np.mean(B))
    assert corrected[frozenset("ac")] < statistics.LEVEL
    assert corrected[frozenset("ab")] >= differences[frozenset("ab")].p
