"""Time workloads in interleaved rounds and compare them by the ratio within each round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Workload = Callable[[], Any]


@dataclass(frozen=True)
class Ratio:
    """Their time over ours, as median and quartiles of all rounds: above 1, ours is faster."""

    lower: float
    median: float
    upper: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lower:.2f}–{self.upper:.2f})"


@dataclass(frozen=True)
class TimingConfig:
    """How long to measure.

    Args:
        min_sample: the least duration of one sample in seconds; short workloads are repeated.
        budget: the duration of all rounds of one comparison in seconds.
        min_rounds: the number of rounds however long a round takes.
        max_rounds: the number of rounds however short a round is.
        clock: returns a time in seconds. The default, the CPU time of this process, does not count the time that other
            processes take on the same core. Use wall time for several threads and for workloads that wait.
    """

    min_sample: float = 0.01
    budget: float = 8.0
    min_rounds: int = 5
    max_rounds: int = 41
    clock: Callable[[], float] = time.process_time

    def time(self, workload: Workload, repeats: int = 1) -> float:
        """The mean duration of the workload in seconds."""
        start = self.clock()
        for _ in range(repeats):
            workload()
        return (self.clock() - start) / repeats

    def rounds(self, seconds: float) -> int:
        """The number of rounds that fit the budget if one round takes ``seconds``."""
        return max(self.min_rounds, min(self.max_rounds, int(self.budget / max(seconds, 1e-9))))


FULL = TimingConfig()
BRIEF = TimingConfig(min_sample=0.002, budget=0.0, min_rounds=3, max_rounds=3)
"""Shows that everything runs; the values are noisy."""


def time_interleaved(
    ours: Workload, baselines: Mapping[str, Workload], timing: TimingConfig
) -> tuple[dict[str, Ratio], Ratio]:
    """The ratio of the time of each baseline to ours, and the control.

    A round runs ours first and last and the baselines in between; every second round runs in reverse order. Each
    baseline is compared with the mean of the two runs of ours, so that a machine that slows down favours no side. The
    control is the ratio of these two runs: the noise between runs of the same workload.
    """
    workloads = [ours, *baselines.values()]
    samples = [_sample(workload, timing) for workload in workloads]
    workloads, samples = [*workloads, ours], [*samples, samples[0]]
    last = len(workloads) - 1
    ratios: list[list[float]] = [[] for _ in workloads]
    for turn in range(timing.rounds(sum(sample.seconds for sample in samples))):
        order = range(len(workloads)) if turn % 2 == 0 else reversed(range(len(workloads)))
        times = {i: timing.time(workloads[i], samples[i].repeats) for i in order}
        for i, seconds in times.items():
            ratios[i].append(seconds / (times[0] if i == last else (times[0] + times[last]) / 2))
    return dict(zip(baselines, map(_quartiles, ratios[1:last]), strict=True)), _quartiles(ratios[last])


def median_seconds(workloads: Mapping[Any, Workload], timing: TimingConfig) -> dict[Any, float]:
    """The median duration of every workload; all are run in turn."""
    samples = {name: _sample(workload, timing) for name, workload in workloads.items()}
    times: dict[Any, list[float]] = {name: [] for name in workloads}
    for _ in range(timing.rounds(sum(sample.seconds for sample in samples.values()))):
        for name, workload in workloads.items():
            times[name].append(timing.time(workload, samples[name].repeats))
    return {name: statistics.median(values) for name, values in times.items()}


def forward(run: Callable[[], Tensor]) -> Workload:
    """A forward pass under ``inference_mode``."""
    return torch.inference_mode()(run)


def backward(run: Callable[[], Tensor]) -> Workload:
    return lambda: run().sum().backward()


def _quartiles(ratios: list[float]) -> Ratio:
    lower, median, upper = statistics.quantiles(ratios, n=4)
    return Ratio(lower, median, upper, len(ratios))


class _Sample(NamedTuple):
    repeats: int
    seconds: float


def _sample(workload: Workload, timing: TimingConfig) -> _Sample:
    """The repeats that make a sample long enough, and its duration; it warms the workload up."""
    once = timing.time(workload)
    if once < 10 * timing.min_sample:
        once = timing.time(workload, 3)  # the first run was cold
    repeats = max(1, round(timing.min_sample / max(once, 1e-9)))
    return _Sample(repeats, repeats * once)
