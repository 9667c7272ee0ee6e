"""The time of a comparison relative to its bare runs, two jobs relative to one, and the time and size of a report."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from attnlab.bench.timing import Ratio, TimingConfig
from attnlab.comparison import results
from attnlab.comparison.results import Results
from benchmarks.results import Note, Row

TITLE = "Comparisons"
ABOUT = (
    "Six runs of `induction` (500 steps of multihead with 4 heads, one thread each), wall time of whole commands: "
    "`attnlab compare` with one job and with two, and a script that trains the same runs in sequence. The three "
    "are interleaved; a result is the median (quartiles) of the ratios within a round, and the control is the ratio of "
    "two scripts. The report has 200 runs, made from the recorded comparison of docs/compare.md."
)

SEEDS, STEPS, RUNS = 6, 500, 200
FLAGS = ["--task", "induction", "--steps", str(STEPS), "--num_heads", "4"]
COMPARE = ["-m", "attnlab", "compare", "--models", "multihead", "--seeds", str(SEEDS), "--lr", "default", *FLAGS]
BARE = f"""
import sys
from pathlib import Path
from attnlab.training.experiment import prepare
from attnlab.training.settings import defaults
from attnlab.training.train import start, train
for seed in range({SEEDS}):
    values = dict(steps={STEPS}, num_heads=4, seed=seed, threads=1)
    experiment = prepare(defaults("multihead", "induction").updated(values, "the benchmark"))
    train(experiment, start(experiment, Path(sys.argv[1]) / str(seed)))
"""
OVERHEAD, SPEEDUP, SECONDS, BYTES = 1.05, 1.8, 5.0, 3_000_000


def rows(timing: TimingConfig) -> Iterator[Row]:
    """Whole commands on all cores, in rounds."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if cores:  # the benchmark is pinned to one core, and two jobs need two
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        rounds = [_round() for _ in range(3)]
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
    control = _ratio([again / bare for bare, _, _, again in rounds])
    overhead = _ratio([one / ((bare + again) / 2) for bare, one, _, again in rounds])
    speedup = _ratio([one / two for _, one, two, _ in rounds])
    yield _note(
        "one job, time over the bare runs", overhead, control, f"at most {OVERHEAD}", overhead.median <= OVERHEAD
    )
    yield _note("two jobs on two cores, speed over one job", speedup, control, f"{SPEEDUP}×", speedup.median >= SPEEDUP)
    seconds, size = _report()
    yield Note(
        "report of 200 runs",
        text=f"{seconds:.1f} s, {size / 1e6:.2f} MB",
        requirement=f"{SECONDS:g} s, {BYTES / 1e6:g} MB",
        is_met=seconds < SECONDS and size < BYTES,
        values={"seconds": seconds, "bytes": size},
    )


def _round() -> tuple[float, float, float, float]:
    """The seconds of the bare runs, one job, two jobs, and the bare runs again."""
    with tempfile.TemporaryDirectory() as folder:
        return (
            _seconds("-c", BARE, f"{folder}/first"),
            _seconds(*COMPARE, "--no_costs", "--output", f"{folder}/one"),
            _seconds(*COMPARE, "--no_costs", "--jobs", "2", "--output", f"{folder}/two"),
            _seconds("-c", BARE, f"{folder}/again"),
        )


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def _report() -> tuple[float, int]:
    """The seconds to write the reports of 200 runs in a new process, and the bytes of the page."""
    script = (
        "import sys; from pathlib import Path; from benchmarks.parts.comparison import many; "
        "from attnlab.comparison.report import write_reports; import time; made = many(); start = time.perf_counter(); "
        "write_reports(made, Path(sys.argv[1])); print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", script, folder]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return float(printed), (Path(folder) / "report.html").stat().st_size


def many() -> Results:
    """The recorded comparison of docs/compare.md, repeated under other names until it has 200 runs."""
    made = results.read(Path(__file__).parents[2] / "docs" / "comparisons" / "recall" / results.FILE)
    trials = [trial for trial in made.trials if not trial.tuning]
    copies = range(math.ceil(RUNS / len(trials)))
    return made.model_copy(
        update={
            "cases": [c.model_copy(update={"label": f"{c.label} {i}"}) for i in copies for c in made.cases],
            "trials": [t.model_copy(update={"label": f"{t.label} {i}"}) for i in copies for t in trials][:RUNS],
        }
    )


def _ratio(values: list[float]) -> Ratio:
    lower, median, upper = statistics.quantiles(values, n=4)
    return Ratio(lower, median, upper, len(values))


def _note(case: str, ratio: Ratio, control: Ratio, requirement: str, is_met: bool) -> Note:
    values = {"ratio": ratio.median, "lower": ratio.lower, "upper": ratio.upper, "control": control.median}
    return Note(case, text=f"{ratio} (control {control})", requirement=requirement, is_met=is_met, values=values)
