"""From the test results of the seeds to intervals, paired differences, letters, capacities and a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise as neighbours

from attnlab.comparison import statistics
from attnlab.comparison.results import (
    CapacityRecord,
    CaseRecord,
    DifferenceRecord,
    IntervalRecord,
    Point,
    Results,
)
from attnlab.comparison.statistics import LEVEL, POWER, Difference, Interval

THRESHOLD = 0.95
"""The accuracy that a capacity is measured at."""
MAX_NAMED = 5
"""The most mechanisms that a verdict names one by one."""

Qualities = Mapping[int, float]
"""The test metric by seed."""


def interval_record(values: Sequence[float], overlap: float) -> IntervalRecord | None:
    """The mean and its interval; None for no values."""
    if not values:
        return None
    return _interval(statistics.interval(values, overlap=overlap))


def differences(
    qualities: Mapping[str, Qualities], baselines: Mapping[str, str], overlap: float
) -> dict[str, DifferenceRecord]:
    """The paired difference of each label from its baseline, with p-values corrected for all of them.

    Args:
        qualities: the metric by label and seed; only seeds that both have are compared.
        baselines: the label of the baseline of each label that is compared.
        overlap: see `statistics.interval`.
    """
    found: dict[str, Difference] = {}
    for label, baseline in baselines.items():
        seeds = sorted(qualities[label].keys() & qualities[baseline].keys())
        if seeds:
            ours, theirs = ([qualities[name][seed] for seed in seeds] for name in (label, baseline))
            found[label] = statistics.paired(ours, theirs, overlap=overlap)
    corrected = statistics.holm([each.p for each in found.values()])
    return {
        label: DifferenceRecord(
            **_interval(each).model_dump(), p=p, detectable=each.detectable if math.isfinite(each.detectable) else None
        )
        for (label, each), p in zip(found.items(), corrected, strict=True)
    }


def letters(qualities: Mapping[str, Qualities], overlap: float, *, higher_is_better: bool) -> dict[str, str]:
    """The letters of the labels that have every seed; two of them share one if they cannot be distinguished."""
    seeds = sorted(set().union(*qualities.values()))
    complete = {label: [values[s] for s in seeds] for label, values in qualities.items() if len(values) == len(seeds)}
    if len(complete) < 2 or len(seeds) < 2:
        return {}
    _, corrected = statistics.pairwise(complete, overlap=overlap)
    means = {label: sum(values) for label, values in complete.items()}
    return statistics.letters(means, {pair: p < LEVEL for pair, p in corrected.items()}, best_first=higher_is_better)


def capacity(label: str, curves: Mapping[int, Sequence[tuple[float, float]]]) -> CapacityRecord:
    """Where accuracy falls below `THRESHOLD`, interpolated on a logarithmic axis.

    Args:
        label: of the curve.
        curves: for each seed the points of the sweep with their accuracy, in increasing order.
    """
    crossings, above, below = [], 0, 0
    for points in curves.values():
        at = _crossing(points)
        above += at == math.inf
        below += at == -math.inf
        crossings.append(at)
    known = above == below == 0 and crossings
    return CapacityRecord(
        label=label,
        threshold=THRESHOLD,
        at=interval_record(crossings, 0.0) if known else None,
        above=above,
        below=below,
    )


def _crossing(points: Sequence[tuple[float, float]]) -> float:
    """The first point below the threshold; inf if none is, -inf if the first is."""
    if points[0][1] < THRESHOLD:
        return -math.inf
    for (x1, y1), (x2, y2) in neighbours(points):
        if y2 < THRESHOLD:
            fraction = (y1 - THRESHOLD) / (y1 - y2)
            return math.exp(math.log(x1) + fraction * (math.log(x2) - math.log(x1)))
    return math.inf


def _interval(value: Interval) -> IntervalRecord:
    low, high = (bound if math.isfinite(bound) else None for bound in (value.low, value.high))
    return IntervalRecord(mean=value.mean, low=low, high=high, n=value.n)


# Text


def decimals(half_width: float | None, scale: float = 1.0) -> int:
    """The decimal places that an interval supports: two significant digits of its half width if it begins with 1.

    Without an interval three significant digits of ``scale``, and at least three places; never more than four digits.
    """
    most = 4 if scale == 0 else max(4, 3 - math.floor(math.log10(abs(scale))))
    if half_width is None or half_width <= 0 or not math.isfinite(half_width):
        return most - 1
    exponent = math.floor(math.log10(half_width))
    first = int(half_width / 10**exponent)
    return min(most, max(0, -exponent + (1 if first == 1 else 0)))


def number(value: float, half_width: float | None, scale: float | None = None) -> str:
    """A value with the digits that its interval supports; ``scale`` is the mean where it is not the value itself."""
    text = f"{value:,.{decimals(half_width, max(abs(value if scale is None else scale), half_width or 0.0))}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.replace("-", "")


def half_width(value: IntervalRecord) -> float | None:
    """Half of the width of an interval; None for a single seed."""
    return None if value.low is None or value.high is None else (value.high - value.low) / 2


def with_interval(value: IntervalRecord) -> str:
    """``0.912 ± 0.016``, or the mean alone for a single seed."""
    half = half_width(value)
    return number(value.mean, half) + ("" if half is None else f" ± {number(half, half, value.mean)}")


def bounds(value: IntervalRecord) -> str:
    """``0.034 (0.020 to 0.048)``, without signs: the size of a difference."""
    half, sign = half_width(value), -1 if value.mean < 0 else 1
    if value.low is None or value.high is None:
        return number(abs(value.mean), half)
    low, high = sorted((sign * value.low, sign * value.high))
    digits = [number(each, half, value.mean) for each in (abs(value.mean), low, high)]
    return f"{digits[0]} ({digits[1]} to {digits[2]})"


def verdict(results: Results) -> str:
    """The answer in one or two sentences."""
    if len(results.seeds) < 2:
        return "One seed gives no interval, so nothing can be distinguished; use --seeds 5 or more."
    if len({capacity_text(each, results) for each in results.capacities}) > 1:
        return _verdict_on_capacities(results)
    point = results.points[-1]
    where = "" if point is None else f"At {results.sweep} {point}: "
    return where + _verdict_at(results, point)


def _verdict_at(results: Results, point: Point) -> str:
    cases = results.at(point)
    failed = [f"{case.label} ({case.failed} of {len(results.seeds)})" for case in cases if case.failed]
    finished = [case for case in cases if case.quality is not None and not case.failed]
    if not finished:
        return f"Every mechanism has runs that failed, so nothing is known: {_names(failed)}."
    best = finished[0]
    assert best.quality is not None
    word = "highest" if results.higher_is_better else "lowest"
    parts = [f"{best.label} has the {word} {results.metric_label}, {with_interval(best.quality)}"]
    tied = [case.label for case in finished[1:] if set(case.letters) & set(best.letters)]
    if tied and len(tied) == len(finished) - 1:
        parts[0] += f", but no two mechanisms can be distinguished at n = {best.quality.n}"
    elif tied:
        parts[0] += f", not distinguishable from {_names(tied)} at n = {best.quality.n}"
    compared = [case for case in finished if case.difference is not None]
    better = [case for case in compared if is_distinct(case) and _is_better(case, results)]
    worse = [case for case in compared if is_distinct(case) and not _is_better(case, results)]
    same = [case for case in compared if not is_distinct(case)]
    for word, group in (("better", better), ("worse", worse)):
        if group:
            named = [f"{case.label} by {bounds(case.difference)}" for case in group if case.difference]
            shown = _names(named) if len(named) <= MAX_NAMED else f"{len(named)} mechanisms"
            parts.append(f"{word} than {results.baseline}: {shown}")
    if same and (better or worse):
        parts.append(f"not distinguishable from {results.baseline}: {_names([case.label for case in same])}")
    if detectable := [case.difference.detectable for case in same if case.difference and case.difference.detectable]:
        size = max(detectable)
        parts[-1] += f" (a difference of {number(size, size)} would be detected with a probability of {POWER:.0%})"
    if failed:
        parts.append(f"runs that failed: {_names(failed)}")
    if beaten := _unbeaten(results, point, best):
        parts.append(f"no mechanism is better than {beaten}")
    return "; ".join(parts) + "."


def _is_better(case: CaseRecord, results: Results) -> bool:
    return case.difference is not None and (case.difference.mean > 0) == results.higher_is_better


def _unbeaten(results: Results, point: Point, best: CaseRecord) -> str:
    """The best simpler method, if the interval of the best mechanism does not lie on the better side of it."""
    methods = [each for each in results.baselines if each.point in (point, None) or len(results.points) == 1]
    if not methods or best.quality is None or best.quality.low is None or best.quality.high is None:
        return ""
    if results.higher_is_better:
        method = max(methods, key=lambda each: each.quality.mean)
        beaten = best.quality.low > method.quality.mean
    else:
        method = min(methods, key=lambda each: each.quality.mean)
        beaten = best.quality.high < method.quality.mean
    return "" if beaten else f'the simpler method "{method.name}" ({with_interval(method.quality)})'


def _verdict_on_capacities(results: Results) -> str:
    parts = [f"{each.label} {capacity_text(each, results)}" for each in ranked(results.capacities)]
    shown = parts if len(parts) <= 2 * MAX_NAMED else [*parts[:MAX_NAMED], "..."]
    failed = [*dict.fromkeys(case.label for case in results.cases if case.failed)]
    left_out = f" Runs of {_names(failed)} failed, and are left out." if failed else ""
    return f"The {results.sweep} at which accuracy falls below {THRESHOLD:.0%}: {'; '.join(shown)}.{left_out}"


def ranked(capacities: Sequence[CapacityRecord]) -> list[CapacityRecord]:
    """The capacities, largest first."""

    def size(each: CapacityRecord) -> float:
        if each.at is not None:
            return each.at.mean
        return math.inf if each.above > each.below else -math.inf

    return sorted(capacities, key=size, reverse=True)


def capacity_text(each: CapacityRecord, results: Results) -> str:
    """``18 ± 3``, ``more than 64``, ``fewer than 4``, or how many seeds fall on which side."""
    if each.at is not None:
        return with_interval(each.at)
    seeds = len(results.seeds)
    first, last = results.points[0], results.points[-1]
    if each.above == seeds:
        return f"more than {last}"
    if each.below == seeds:
        return f"less than {first}"
    sides = [(each.above, f"more than {last}"), (each.below, f"less than {first}")]
    return " and ".join(f"{text} in {count} of {seeds} seeds" for count, text in sides if count)


def _names(names: Sequence[str]) -> str:
    if len(names) > MAX_NAMED:
        return f"{', '.join(names[:MAX_NAMED])} and {len(names) - MAX_NAMED} more"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def is_distinct(case: CaseRecord) -> bool:
    """Whether a case differs from its baseline."""
    return case.difference is not None and not case.failed and case.difference.p < LEVEL
