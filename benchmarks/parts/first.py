"""The README's first training command, for three seeds: how good, and whether it ends within a minute."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.pairing import Pace
from benchmarks.results import Finding, Row

COMMAND = "main.py --model selfhead --embed_dim 64 --epochs 100"
SEEDS = (0, 1, 2)
ACCURACY, SECONDS = 0.95, 60

TITLE = "The first command"
ABOUT = f"`python {COMMAND}`, {len(SEEDS)} seeds: accuracy on the test part, and the time of the slowest."


def rows(pace: Pace) -> Iterator[Row]:
    """How good, and how long; a run each, at any pace."""
    accuracies, slowest = [], 0.0
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            words = [*COMMAND.split(), "--seed", str(seed), "--json", "--run_dir", str(Path(folder) / "run")]
            began = time.perf_counter()
            done = subprocess.run([sys.executable, *words], check=True, capture_output=True, text=True)
            slowest = max(slowest, time.perf_counter() - began)
            accuracies.append(json.loads(done.stdout)["test"])
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    each = ", ".join(f"{accuracy:.3f}" for accuracy in accuracies)
    measured = f"{mean:.3f} ± {spread:.3f} ({each})"
    yield Finding("accuracy", measured, f"{ACCURACY}", mean >= ACCURACY, {"accuracies": accuracies})
    when = f"{'within' if slowest <= SECONDS else 'after'} {SECONDS} s"
    yield Finding("the slowest ended", when, f"within {SECONDS} s", slowest <= SECONDS, {"seconds": slowest})
