"""The table of docs/tasks.md: its measurement resumes, and every recorded run reaches the threshold of its task."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from attnlab import tasks
from attnlab.docs import tasks as measured
from attnlab.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def test_every_recorded_run_reaches_the_threshold() -> None:
    results = json.loads((ROOT / "docs" / "tasks.json").read_text("utf-8"))
    assert Counter(run["task"] for run in results) == dict.fromkeys(measured.with_threshold(), measured.SEEDS)
    for run in results:
        assert run["accuracy"] >= tasks.entry(run["task"]).threshold > run["baseline"], run


@pytest.mark.slow
@pytest.mark.parametrize(("task", "steps"), [("copy", 240), ("needle", 140)])
def test_the_threshold_is_reached(task: str, steps: int) -> None:
    """With fewer steps than the default, to save time."""
    assert measured.measure(task, 1, steps=steps)["accuracy"] >= tasks.entry(task).threshold


def test_a_measured_run() -> None:
    run = measured.measure("modular_addition", 3, steps=2, vocabulary=7)
    assert (run["task"], run["seed"], run["steps"], run["tokens"]) == ("modular_addition", 3, 2, 2 * 32 * 3)
    assert run["chance"] == run["baseline"] == round(1 / 7, 4)
    assert 0 <= run["accuracy"] <= 1


def test_an_interrupted_measurement_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []

    def measure(task: str, seed: int) -> dict[str, Any]:
        made.append((task, seed))
        if len(made) == 3:
            raise KeyboardInterrupt
        numbers = {"steps": 5, "tokens": 10, "chance": 0.1, "baseline": 0.2, "accuracy": 0.9 + seed / 100}
        return {"task": task, "seed": seed, **numbers}

    monkeypatch.setattr(measured, "measure", measure)
    output = tmp_path / "tasks.json"
    call = ["tasks", "--task", "copy", "sort", "--seeds", "2", "--output", str(output)]
    monkeypatch.setattr("sys.argv", call)
    with pytest.raises(KeyboardInterrupt):
        measured.main()
    measured.main()
    assert made == [("copy", 0), ("sort", 0), ("copy", 1), ("copy", 1), ("sort", 1)]
    rows = measured.recorded(output).splitlines()[2:]
    assert rows[0] == "| `copy` | 0.100 | 0.200 | 0.99 | 5 | 10 | 0.905 (0.841 to 0.969), n = 2 |"
    assert measured.recorded(tmp_path / "none.json").startswith("Not measured yet")
    monkeypatch.setattr("sys.argv", [*call[:3], "--seeds", "1", "--output", str(output), "--again"])
    measured.main()
    assert Counter(run["task"] for run in json.loads(output.read_text("utf-8"))) == {"copy": 1, "sort": 2}


def test_without_a_checkout_a_file_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tasks"])
    monkeypatch.setattr("attnlab.catalog.registry.checkout", lambda: None)
    with pytest.raises(UserError, match=r"docs/tasks\.json is in a checkout; give another file with --output"):
        measured.main()
