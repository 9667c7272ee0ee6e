"""Lists of runs: one row per run, and the differences between two of them."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attnlab.training.extension import stopped_at
from attnlab.training.folder import RUN_FILES, RUNS, sweep
from attnlab.training.locks import is_locked
from attnlab.training.runs import Run
from attnlab.training.settings import current_names
from attnlab.utils.errors import UserError

COLUMNS = ("model", "task", "data", "seed")
"""The settings with a column of their own."""
VERSIONS = ("attnlab", "torch", "threads")
HASHES = ("data_sha256", "init_sha256")
RESULTS = ("validation", "best_step", "steps", "ended", "parameters", "seconds")


@dataclass(frozen=True)
class Row:
    """One run.

    ``step`` is that of its last checkpoint; ``status`` is ``running``, ``stopped``, ``finished``, ``early`` (stopped by
    ``--patience``) or ``damaged``, with the ``reason``. ``settings`` are those that differ among the listed runs.
    """

    run: str
    status: str
    model: str | None = None
    task: str | None = None
    data: str | None = None
    seed: int | None = None
    step: int | None = None
    metric: str | None = None
    test: float | None = None
    reason: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The row as a dictionary."""
        return asdict(self)


def rows(folder: Path = RUNS) -> list[Row]:
    """The runs in a folder, by name, including damaged ones; other folders are skipped."""
    if not folder.is_dir():
        return []
    sweep(folder)
    found: list[Row | tuple[Run, dict[str, Any] | None, int]] = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        try:
            run = Run.open(path)
            run.metrics()
            found.append((run, run.result(), stopped_at(run)))
        except UserError as error:
            if any(os.path.lexists(path / name) for name in RUN_FILES[:4]):
                found.append(Row(str(path), "damaged", reason=str(error)))
    differing = _differing([_settings(each[0]) for each in found if not isinstance(each, Row)])
    return [each if isinstance(each, Row) else _row(*each, differing) for each in found]


def _row(run: Run, result: dict[str, Any] | None, step: int, differing: set[str]) -> Row:
    settings = _settings(run)
    return Row(
        str(run.path),
        _status(run, result),
        **{name: settings[name] for name in COLUMNS},
        step=step,
        metric=run.config["metric"],
        test=None if result is None else result["test"],
        settings={name: settings[name] for name in settings if name in differing},
    )


def _settings(run: Run) -> dict[str, Any]:
    """The recorded settings by their current names."""
    return current_names(run.config["settings"], str(run.path))


def _status(run: Run, result: dict[str, Any] | None) -> str:
    if result is not None:
        return str(result["ended"])
    return "running" if is_locked(run.path) else "stopped"


def _differing(settings: list[dict[str, Any]]) -> set[str]:
    """The names of the settings that have more than one value among the runs that have them."""
    values: dict[str, list[Any]] = {}
    for run in settings:
        for name, value in run.items():
            values.setdefault(name, []).append(value)
    return {name for name, each in values.items() if name not in COLUMNS and any(value != each[0] for value in each)}


def differences(a: Run, b: Run) -> dict[str, dict[str, list[Any]]]:
    """The differences between two runs, as ``{group: {name: [of a, of b]}}``; None for a missing value.

    The groups are ``settings``, ``data``, ``versions`` and ``results``.
    """
    groups = {
        "settings": [_settings(run) for run in (a, b)],
        "data": [
            {name: run.config.get(name) for name in HASHES} | {"corpus_sha256": run.config["encoding"].get("sha256")}
            for run in (a, b)
        ],
        "versions": [{name: run.config[name] for name in VERSIONS} for run in (a, b)],
        "results": [_results(run) for run in (a, b)],
    }
    return {
        group: {
            name: [one.get(name), other.get(name)]
            for name in dict.fromkeys([*one, *other])
            if one.get(name) != other.get(name)
        }
        for group, (one, other) in groups.items()
    }


def _results(run: Run) -> dict[str, Any]:
    result = run.result()
    if result is None:
        return {"steps": stopped_at(run), "ended": _status(run, result)}
    values: dict[str, Any] = result.get("metrics") or {result["metric"]: result["test"]}
    return {f"test {name}": value for name, value in values.items()} | {name: result[name] for name in RESULTS}
