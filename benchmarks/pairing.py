"""Ratios that a noisy machine cannot fake: A and B in turn, the ratio of every pair, its median and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Work = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast A is as B: above 1, A is faster."""

    lower: float
    median: float
    upper: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lower:.2f}–{self.upper:.2f})"


def speed_ratio(a: Work, b: Work, *, pairs: int = 60, seconds: float = 0.01) -> Ratio:
    """The speed of ``a`` over that of ``b``.

    Each sample repeats the work until it lasts about ``seconds``; the order within a pair alternates.
    """
    repeats = _repeats(b, seconds)
    _time(a, repeats), _time(b, repeats)
    ratios = []
    for pair in range(pairs):
        first, second = (a, b) if pair % 2 == 0 else (b, a)
        t1, t2 = _time(first, repeats), _time(second, repeats)
        ratios.append(t2 / t1 if pair % 2 == 0 else t1 / t2)
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return Ratio(lower, median, upper, pairs)


def _repeats(work: Work, seconds: float) -> int:
    work()
    once = _time(work, 3) / 3
    return max(1, round(seconds / once))


def _time(work: Work, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    return time.perf_counter() - began
