"""A clock that only workloads advance, so that no test depends on a measured time."""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    """The time in seconds; ``slowdown`` multiplies the duration of a workload after each run."""

    def __init__(self, slowdown: float = 1.0) -> None:
        self.now, self.factor, self.slowdown = 0.0, 1.0, slowdown
        self.calls: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.calls.append(seconds)
        self.now += seconds * self.factor
        self.factor *= self.slowdown

    def workload(self, seconds: float) -> Callable[[], None]:
        return lambda: self.pass_time(seconds)
