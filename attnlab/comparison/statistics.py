"""Intervals, paired tests and corrections for comparisons over a few seeds.

All intervals are Student's: with five seeds, bootstrap intervals are too narrow (a resample repeats a seed), and no
permutation test can reach a p-value below 0.06.

Where a seed draws another split of the same examples, the test results of two seeds are correlated, because their
training data overlap. The variance of a mean is then corrected (Nadeau & Bengio 2003, "Inference for the
Generalization Error", section 4.2): ``(1/n + test/train)·s²`` in place of ``s²/n``.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

LEVEL = 0.05
"""The probability of an error of the first kind: a difference is reported where there is none."""
POWER = 0.8
"""The probability with which the minimum detectable difference is detected."""


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds and its 95 % interval, which is infinite for a single seed."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Half of the width of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference(Interval):
    """The mean of the paired differences, its interval, and its p-value.

    ``p`` is that of the two-sided paired t-test, not yet corrected for several comparisons; 1 for a single pair.
    ``detectable`` is the smallest difference that a test of the same `LEVEL` detects with probability `POWER` if the
    standard deviation is the one that was measured; infinite for a single pair.
    """

    p: float
    detectable: float


def interval(values: Sequence[float], *, overlap: float = 0.0) -> Interval:
    """The mean and its 95 % interval; ``overlap`` is test/train where the seeds split the same examples, else 0.

    Raises:
        ValueError: for no values.
    """
    from scipy import stats

    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Interval(mean, -math.inf, math.inf, n)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * _error(values, overlap)
    return Interval(mean, mean - half, mean + half, n)


def paired(values: Sequence[float], baseline: Sequence[float], *, overlap: float = 0.0) -> Difference:
    """The difference of ``values`` from ``baseline``, where both have one value per seed, in the same order.

    A small test set can give all seeds the same difference by chance: its metric has few values. Their standard
    deviation is then that of the difference of two values that were rounded to multiples of it, ``|mean|/sqrt(6)``.

    Raises:
        ValueError: for no values, or different numbers of values.
    """
    from scipy import stats

    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    n, mean = len(differences), statistics.fmean(differences)
    if n < 2:
        return Difference(mean, -math.inf, math.inf, n, 1.0, math.inf)
    error, rounding = _error(differences, overlap), 1e-12 * max(map(abs, [*values, *baseline]))
    if error <= rounding:
        if abs(mean) <= rounding:
            return Difference(mean, mean, mean, n, 1.0, 0.0)
        error = abs(mean) * math.sqrt((1 / n + overlap) / 6)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return Difference(mean, mean - half, mean + half, n, p, _detectable(n) * error)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm 1979), in the given order.

    With these, the probability of one or more errors of the first kind among all comparisons is at most the level.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def letters(means: Mapping[str, float], distinct: Mapping[frozenset[str], bool], *, best_first: bool) -> dict[str, str]:
    """Letters such that two names share one exactly if they are not ``distinct`` (compact letter display).

    Source: Piepho 2004, "An Algorithm for a Letter-Based Representation of All-Pairwise Comparisons".

    Args:
        means: by name; the letter a belongs to the best.
        distinct: whether two names differ, for every pair.
        best_first: whether larger means are better.
    """
    names = sorted(means, key=means.__getitem__, reverse=best_first)
    groups: list[set[str]] = [set(names)]
    for a, b in combinations(names, 2):
        if not distinct[frozenset((a, b))]:
            continue
        split = [part for group in groups if {a, b} <= group for part in (group - {a}, group - {b})]
        groups = [group for group in groups if not {a, b} <= group]
        for part in split:
            if not any(part <= group for group in groups):
                groups = [group for group in groups if not group <= part] + [part]
    groups.sort(key=lambda group: sorted(map(names.index, group)))
    return {name: "".join(_letter(i) for i, group in enumerate(groups) if name in group) for name in names}


def pairwise(
    values: Mapping[str, Sequence[float]], *, overlap: float = 0.0
) -> tuple[dict[frozenset[str], Difference], dict[frozenset[str], float]]:
    """The paired difference of every two names, first minus second in the given order, and their Holm p-values."""
    pairs = [*combinations(values, 2)]
    differences = [paired(values[a], values[b], overlap=overlap) for a, b in pairs]
    keys = [*map(frozenset[str], pairs)]
    return dict(zip(keys, differences, strict=True)), dict(
        zip(keys, holm([each.p for each in differences]), strict=True)
    )


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"({index + 1})"


def _error(values: Sequence[float], overlap: float) -> float:
    """The standard error of the mean."""
    return statistics.stdev(values) * math.sqrt(1 / len(values) + overlap)


@functools.cache
def _detectable(n: int) -> float:
    """The minimum detectable difference in units of the standard error, from the noncentral t distribution."""
    from scipy import optimize, stats

    critical = float(stats.t.ppf(1 - LEVEL / 2, n - 1))

    def missing(shift: float) -> float:
        return float(stats.nct.sf(critical, n - 1, shift)) - POWER

    high = 1.0
    while missing(high) < 0:
        high *= 2
    return float(optimize.brentq(missing, 0.0, high))
