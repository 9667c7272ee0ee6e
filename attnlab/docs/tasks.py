"""Measure the table of docs/tasks.md: the accuracy of multihead on every task, ``python -m attnlab.docs.tasks``.

A run is that of ``python main.py --task TASK --seed SEED``. Finished runs are recorded in docs/tasks.json, so that an
interrupted measurement resumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.docs.hybrids import interval
from attnlab.utils import markdown
from attnlab.utils.errors import UserError

SEEDS = 5
MODEL = "multihead"


def main() -> None:
    """Train what is not recorded yet, then print the table."""
    parser = argparse.ArgumentParser(description="Measure the table of docs/tasks.md.")
    parser.add_argument("--task", nargs="+", default=with_threshold(), help="the tasks; by default all")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="the number of networks per task")
    parser.add_argument("--again", action="store_true", help="measure recorded runs again")
    parser.add_argument("--output", type=Path, help="the file of the results; docs/tasks.json by default")
    arguments = parser.parse_args()
    if arguments.output is None:
        root = registry.checkout()
        if root is None:
            raise UserError("docs/tasks.json is in a checkout; give another file with --output")
        arguments.output = root / "docs" / "tasks.json"
    results = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.is_file() else []
    if arguments.again:
        results = [run for run in results if run["task"] not in arguments.task]
    for seed in range(arguments.seeds):
        for task in arguments.task:
            if any((run["task"], run["seed"]) == (task, seed) for run in results):
                continue
            run = measure(task, seed)
            print(f"{task:<18} seed {seed}  accuracy {run['accuracy']:.3f}", flush=True)
            results.append(run)
            arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(results)}\n\nattnlab docs writes the table to docs/tasks.md")


def with_threshold() -> list[str]:
    """The tasks that state a threshold."""
    return [name for name in tasks.names() if tasks.entry(name).threshold is not None]


def measure(task: str, seed: int, **changes: Any) -> dict[str, Any]:
    """Train one network with the task's defaults and ``changes``, as JSON values."""
    from attnlab.training.experiment import prepare
    from attnlab.training.settings import defaults
    from attnlab.training.train import start, train

    settings = defaults(MODEL, task).updated({"seed": seed, "threads": 1, **changes}, "the measurement")
    experiment = prepare(settings)
    with tempfile.TemporaryDirectory() as folder:
        _, result = train(experiment, start(experiment, Path(folder) / "run"))
    if result is None:  # stopped by a signal
        raise KeyboardInterrupt
    x, baselines = experiment.task_data.train.x, [baseline["value"] for baseline in result["baselines"]]
    return {
        "task": task,
        "seed": seed,
        "steps": result["steps"],
        "tokens": result["steps"] * settings.training.batch_size * x.shape[1],
        "chance": round(min(baselines), 4),
        "baseline": round(max(baselines), 4),
        "accuracy": round(result["test"], 4),
    }


def table(results: Iterable[Mapping[str, Any]]) -> str:
    """The results as a table: a row per task, with the mean accuracy over the seeds and its 95 % interval."""
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for run in results:
        by_task.setdefault(run["task"], []).append(run)
    rows = []
    for task, runs in sorted(by_task.items()):
        mean, low, high = interval([run["accuracy"] for run in runs])
        steps = max(run["steps"] for run in runs)
        rows.append(
            (
                f"`{task}`",
                f"{statistics.fmean(run['chance'] for run in runs):.3f}",
                f"{statistics.fmean(run['baseline'] for run in runs):.3f}",
                f"{tasks.entry(task).threshold:g}",
                f"{steps:,}",
                f"{max(run['tokens'] for run in runs):,}",
                f"{mean:.3f} ({low:.3f} to {high:.3f}), n = {len(runs)}" if len(runs) > 1 else f"{mean:.3f}, n = 1",
            )
        )
    columns = ("task", "chance", "best baseline", "threshold", "steps", "tokens", "multihead (95 % interval)")
    return markdown.table(columns, rows)


def recorded(file: Path) -> str:
    """The table of the recorded results."""
    if not file.is_file():
        return "Not measured yet: run `python -m attnlab.docs.tasks`."
    return table(json.loads(file.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
