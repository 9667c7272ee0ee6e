"""The duration of short commands, relative to importing torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from attnlab.bench.timing import TimingConfig
from benchmarks.results import Note, Row

OURS = {"python main.py --help": ["main.py", "--help"], "attnlab models": ["-m", "attnlab", "models"]}
TORCH = "python -c 'import torch'"
COMMANDS = {**OURS, "python -c pass": ["-c", "pass"], TORCH: ["-c", "import torch"]}
TARGET = 0.5
"""Seconds, on an idle core."""

TITLE = "Start-up"
ABOUT = "Medians of interleaved runs; the first run of each command warms the file cache and is not counted."


def rows(timing: TimingConfig) -> Iterator[Row]:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(2 * timing.min_rounds):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            if run:
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        share = seconds / medians[TORCH]
        requirement, is_met = (f"{TARGET} s", seconds < TARGET) if name in OURS else ("", None)
        values = {"share": share, "seconds": seconds}
        text = f"{share:.2f} of importing torch"
        yield Note(f"`{name}`", text=text, requirement=requirement, is_met=is_met, values=values)
