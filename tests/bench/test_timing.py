"""The timing: ratios of interleaved rounds, the control, and crossovers; with a clock that only workloads advance."""

from __future__ import annotations

import time

import pytest
import torch
from fake_clock import Clock
from hypothesis import given
from hypothesis import strategies as st

from attnlab.bench.crossover import crossing
from attnlab.bench.timing import TimingConfig, clock_for, interleave, median_seconds, ratios, time_interleaved

durations = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5)


def rounds(clock: Clock, number: int, min_sample: float = 0.0) -> TimingConfig:
    return TimingConfig(min_sample=min_sample, budget=0.0, min_rounds=number, max_rounds=number, clock=clock)


@given(durations)
def test_ratios_are_those_of_the_durations(seconds: list[float]) -> None:
    clock = Clock()
    measured = interleave([clock.workload(s) for s in seconds], rounds(clock, 3))
    *compared, control = ratios(measured)
    assert [ratio.median for ratio in compared] == pytest.approx([s / seconds[0] for s in seconds])
    assert (control.lower, control.upper) == pytest.approx((1.0, 1.0))
    assert {len(each) for each in measured} == {3}


def test_rounds_alternate_in_order_and_run_the_first_twice() -> None:
    clock = Clock()
    interleave([clock.workload(s) for s in (1.0, 2.0, 3.0)], rounds(clock, 2))
    assert clock.calls[-8:] == [1.0, 2.0, 3.0, 1.0, 1.0, 3.0, 2.0, 1.0]


def test_short_workloads_are_repeated_and_give_the_time_of_one_run() -> None:
    clock = Clock()
    ratio, control = time_interleaved(
        clock.workload(0.02), {"slow": clock.workload(0.05), "fast": clock.workload(0.004)}, rounds(clock, 5, 0.1)
    )
    assert {name: r.median for name, r in ratio.items()} == pytest.approx({"slow": 2.5, "fast": 0.2})
    assert control.median == pytest.approx(1.0)
    assert {ratio["slow"].rounds, ratio["fast"].rounds, control.rounds} == {5}
    assert clock.calls.count(0.004) >= 5 * 25


def test_a_slowing_machine_favours_no_side() -> None:
    clock = Clock(slowdown=1.02)
    compared, control = time_interleaved(clock.workload(1.0), {"same": clock.workload(1.0)}, rounds(clock, 40))
    assert (compared["same"].lower, compared["same"].upper) == pytest.approx((1.0, 1.0), abs=0.005)
    assert control.lower < 0.99
    assert control.upper > 1.01, "the control shows the drift"


@pytest.mark.parametrize(("seconds", "number"), [(1e-6, 41), (0.5, 16), (60.0, 9)])
def test_rounds_follow_from_the_budget(seconds: float, number: int) -> None:
    assert TimingConfig(budget=8.0, min_rounds=9, max_rounds=41).rounds(seconds) == number


def test_median_seconds_is_the_time_of_one_run() -> None:
    clock = Clock()
    workloads = {"a": clock.workload(0.25), "b": clock.workload(0.001)}
    times = median_seconds(workloads, TimingConfig(min_sample=0.1, min_rounds=3, clock=clock))
    assert times == pytest.approx({"a": 0.25, "b": 0.001})


def test_one_thread_is_timed_by_cpu_time_and_several_by_wall_time() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert clock_for("cpu") is time.process_time
        torch.set_num_threads(2)
        assert clock_for("cpu") is time.perf_counter
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("speedups", "length"),
    [([0.5, 2.0, 4.0], 512), ([2.0, 0.25, 4.0], 2048), ([1.0, 1.1, 1.2], 256), ([2.0, 2.0, 0.9], None)],
)
def test_crossing_is_where_the_ratio_last_passes_one(speedups: list[float], length: float | None) -> None:
    expected = length if length is None else pytest.approx(length)
    assert crossing((256, 1024, 4096), speedups) == expected
