"""Time workloads in interleaved rounds and compare them by the ratio within each round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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


def clock_for(device: torch.device | str) -> Callable[[], float]:
    """The clock for workloads on ``device``: CPU time of the process for one thread, wall time for several.

    On a GPU, wall time after synchronization.
    """
    if torch.device(device).type == "cpu":
        return time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    return partial(_synchronized, torch.device(device))


def interleave(workloads: Sequence[Workload], timing: TimingConfig) -> list[list[float]]:
    """The seconds of each workload in each round; the last list is a second run of the first workload.

    A round runs the first workload first and last and the others in between; every second round runs in reverse order.
    """
    samples = [_sample(workload, timing) for workload in workloads]
    workloads, samples = [*workloads, workloads[0]], [*samples, samples[0]]
    seconds: list[list[float]] = [[] for _ in workloads]
    for turn in range(timing.rounds(sum(sample.seconds for sample in samples))):
        order = range(len(workloads)) if turn % 2 == 0 else reversed(range(len(workloads)))
        for i in order:
            seconds[i].append(timing.time(workloads[i], samples[i].repeats))
    return seconds


def ratios(seconds: Sequence[Sequence[float]]) -> list[Ratio]:
    """The time of each workload over that of the first, from the rounds of `interleave`; the last is the control.

    A workload is compared with the mean of the two runs of the first, so that a machine that slows down favours no
    side. The control is the ratio of these two runs: the noise between runs of the same workload.
    """
    first, *others, again = seconds
    means = [(a + b) / 2 for a, b in zip(first, again, strict=True)]
    control = _quartiles([b / a for a, b in zip(first, again, strict=True)])
    pairs = [[s / mean for s, mean in zip(each, means, strict=True)] for each in others]
    return [Ratio(1.0, 1.0, 1.0, len(first)), *map(_quartiles, pairs), control]


def time_interleaved(
    ours: Workload, baselines: Mapping[str, Workload], timing: TimingConfig
) -> tuple[dict[str, Ratio], Ratio]:
    """The ratio of the time of each baseline to ours, and the control; see `interleave` and `ratios`."""
    _, *theirs, control = ratios(interleave([ours, *baselines.values()], timing))
    return dict(zip(baselines, theirs, strict=True)), control


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
    """A forward and a backward pass."""
    return lambda: run().sum().backward()


def _synchronized(device: torch.device) -> float:
    torch.get_device_module(device).synchronize()
    return time.perf_counter()


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
