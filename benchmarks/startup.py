"""How long a command takes before it says anything, beside starting Python and beside importing torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

OURS = {"python main.py --help": ["main.py", "--help"], "attnlab models": ["-m", "attnlab", "models"]}
TORCH = "python -c 'import torch'"
COMMANDS = {**OURS, "python -c pass": ["-c", "pass"], TORCH: ["-c", "import torch"]}
TARGET = 0.5
"""Seconds, on an idle core."""


def seconds(runs: int = 9) -> dict[str, float]:
    """The median wall time of every command, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for run in range(runs + 1):
        for name, words in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            if run:  # the first warms the file cache
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}
