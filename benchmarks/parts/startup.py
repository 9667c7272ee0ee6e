"""How long a command takes before it says anything, beside starting Python and beside importing torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.pairing import Pace
from benchmarks.results import Finding, Row

OURS = {"python main.py --help": ["main.py", "--help"], "attnlab models": ["-m", "attnlab", "models"]}
TORCH = "python -c 'import torch'"
COMMANDS = {**OURS, "python -c pass": ["-c", "pass"], TORCH: ["-c", "import torch"]}
TARGET = 0.5
"""Seconds, on an idle core."""

TITLE = "Start-up"
ABOUT = "Medians, taken in turn; the first of each warms the file cache and does not count."


def rows(pace: Pace) -> Iterator[Row]:
    """What each command takes of the time that importing torch takes."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(2 * pace.least):
        for name, words in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            if run:
                times[name].append(time.perf_counter() - began)
    found = {name: statistics.median(values) for name, values in times.items()}
    for name, value in found.items():
        share = value / found[TORCH]
        wanted, reached = (f"{TARGET} s", value < TARGET) if name in OURS else ("", None)
        measured = f"{share:.2f} of importing torch"
        yield Finding(f"`{name}`", measured, wanted, reached, {"share": share, "seconds": value})
