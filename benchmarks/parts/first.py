"""A training command of the README with three seeds: accuracy and duration."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from attnlab.bench.timing import TimingConfig
from benchmarks.results import Note, Row

COMMAND = "main.py --model selfhead --task digits --embed_dim 64 --epochs 100"
SEEDS = (0, 1, 2)
ACCURACY, SECONDS = 0.95, 60

TITLE = "The first command"
ABOUT = f"`python {COMMAND}`, {len(SEEDS)} seeds: test accuracy, and the duration of the slowest run."


def rows(timing: TimingConfig) -> Iterator[Row]:
    accuracies, slowest = [], 0.0
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            arguments = [*COMMAND.split(), "--seed", str(seed), "--json", "--run_dir", str(Path(folder) / "run")]
            start = time.perf_counter()
            process = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
            slowest = max(slowest, time.perf_counter() - start)
            accuracies.append(json.loads(process.stdout)["test"])
    mean, values = statistics.mean(accuracies), ", ".join(f"{accuracy:.3f}" for accuracy in accuracies)
    text = f"{mean:.3f} ± {statistics.stdev(accuracies):.3f} ({values})"
    yield Note(
        "accuracy", text=text, requirement=f"{ACCURACY}", is_met=mean >= ACCURACY, values={"accuracies": accuracies}
    )
    within = slowest <= SECONDS
    text, values_ = f"{'at most' if within else 'more than'} {SECONDS} s", {"seconds": slowest}
    yield Note("duration of the slowest run", text=text, requirement=f"{SECONDS} s", is_met=within, values=values_)
