"""Compare one workload with one baseline."""

from __future__ import annotations

from benchmarks.results import Speed
from benchmarks.timing import TimingConfig, Workload, time_interleaved


def speed_row(
    timing: TimingConfig,
    case: str,
    baseline: str,
    ours: Workload,
    theirs: Workload,
    target: float,
    goal: str = "",
) -> Speed:
    """Time both and return the row."""
    ratios, control = time_interleaved(ours, {baseline: theirs}, timing)
    return Speed(case, baseline, ratio=ratios[baseline], control=control, target=target, goal=goal)
