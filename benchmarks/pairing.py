"""Ratios that a noisy machine cannot fake: all sides in turn, the ratio in every round, median and quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Work = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast we are as they: above 1, we are faster."""

    lower: float
    median: float
    upper: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lower:.2f}–{self.upper:.2f})"


@dataclass(frozen=True)
class Pace:
    """How long is measured.

    Args:
        sample: seconds that one sample lasts at least; short work is repeated.
        seconds: what the rounds of one race take together.
        least: rounds, however long one takes.
        most: rounds, however short one is.
        clock: what tells the time. With one thread on one core it is the time that our own process computes: what other
            processes take of the core is nobody's slowness. Wall time for more threads, and for what waits.
    """

    sample: float = 0.01
    seconds: float = 8.0
    least: int = 5
    most: int = 41
    clock: Callable[[], float] = time.process_time

    def time(self, work: Work, repeats: int = 1) -> float:
        """Seconds that the work takes once."""
        began = self.clock()
        for _ in range(repeats):
            work()
        return (self.clock() - began) / repeats

    def rounds(self, one: float) -> int:
        """How many rounds there are time for, where one takes so many seconds."""
        return max(self.least, min(self.most, int(self.seconds / max(one, 1e-9))))


FULL = Pace()
BRIEF = Pace(sample=0.002, seconds=0.0, least=3, most=3)
"""To see that everything runs; the numbers mean little."""


def race(ours: Work, theirs: Mapping[str, Work], pace: Pace) -> tuple[dict[str, Ratio], Ratio]:
    """Our speed over that of each of them, and the control.

    In a round we run first and last, they in between, in an order that turns round with every round. Theirs is compared
    with the mean of our two, so that a machine that slows down meanwhile cannot favour a side. The control is the ratio
    of our own two: what the noise alone makes of the same work.
    """
    works = [ours, *theirs.values()]
    samples = [_sample(work, pace) for work in works]
    works, samples = [*works, ours], [*samples, samples[0]]
    last = len(works) - 1
    ratios: list[list[float]] = [[] for _ in works]
    for turn in range(pace.rounds(sum(sample.seconds for sample in samples))):
        order = range(len(works)) if turn % 2 == 0 else reversed(range(len(works)))
        taken = {i: pace.time(works[i], samples[i].repeats) for i in order}
        own = (taken[0] + taken[last]) / 2
        for i, seconds in taken.items():
            ratios[i].append(seconds / (taken[0] if i == last else own))
    found = dict(zip(theirs, map(_summary, ratios[1:last]), strict=True))
    return found, _summary(ratios[last])


def seconds(works: Mapping[Any, Work], pace: Pace) -> dict[Any, float]:
    """The median time of every work, all of them in turn."""
    samples = {name: _sample(work, pace) for name, work in works.items()}
    taken: dict[Any, list[float]] = {name: [] for name in works}
    for _ in range(pace.rounds(sum(sample.seconds for sample in samples.values()))):
        for name, work in works.items():
            taken[name].append(pace.time(work, samples[name].repeats))
    return {name: statistics.median(times) for name, times in taken.items()}


def _summary(ratios: list[float]) -> Ratio:
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return Ratio(lower, median, upper, len(ratios))


class _Sample(NamedTuple):
    """How often a work is repeated in a sample, and how many seconds that takes."""

    repeats: int
    seconds: float


def _sample(work: Work, pace: Pace) -> _Sample:
    """A sample that lasts long enough; the work is warm then."""
    once = pace.time(work)
    if once < 10 * pace.sample:
        once = pace.time(work, 3)  # the first was cold
    repeats = max(1, round(pace.sample / max(once, 1e-9)))
    return _Sample(repeats, repeats * once)


def forward(run: Callable[[], Tensor]) -> Work:
    """A forward pass for its result alone."""

    def work() -> None:
        with torch.inference_mode():
            run()

    return work


def backward(run: Callable[[], Tensor]) -> Work:
    """A forward pass and its backward pass."""
    return lambda: run().sum().backward()
