"""What is told about runs: a row per run, and what differs between two of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attnlab.training.extension import stopped_at
from attnlab.training.runs import Damaged, Run, find
from attnlab.utils.errors import UserError

APART = ("model", "task", "data", "seed")
"""The settings that have a column of their own."""
VERSIONS = ("attnlab", "torch", "threads")
HASHES = ("data_sha256", "init_sha256")
RESULTS = ("validation", "best_step", "steps", "ended", "parameters", "seconds")


@dataclass(frozen=True)
class Row:
    """One run.

    ``step`` is that of its last checkpoint; ``status`` is ``running``, ``stopped``, ``finished``, ``early`` (stopped by
    ``--patience``) or ``damaged``, with the ``reason`` then. ``settings`` are those that differ among the listed runs.
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


def rows(folder: Path) -> list[Row]:
    """The runs in a folder, by name; a damaged one is among them, with the reason."""
    found = find(folder)
    differing = _differing([run.config["settings"] for run in found if isinstance(run, Run)])
    return [_row(run, differing) for run in found]


def _row(run: Run | Damaged, differing: set[str]) -> Row:
    if isinstance(run, Damaged):
        return Row(str(run.path), "damaged", reason=run.reason)
    settings = run.config["settings"]
    try:
        run.metrics()  # read only to find out whether the run could be resumed
        result, step = run.result(), stopped_at(run)
        stopped = "running" if run.is_running() else "stopped"
    except UserError as error:
        return Row(str(run.path), "damaged", reason=str(error))
    return Row(
        str(run.path),
        stopped if result is None else result["ended"],
        **{name: settings[name] for name in APART},
        step=step,
        metric=run.config["metric"],
        test=None if result is None else result["test"],
        settings={name: settings[name] for name in settings if name in differing},
    )


def _differing(settings: list[dict[str, Any]]) -> set[str]:
    """The names of the settings that have more than one value among the runs that have them."""
    names = {name for run in settings for name in run} - set(APART)
    return {name for name in names if any(run[name] != other[name] for run, other in _pairs(settings, name))}


def _pairs(settings: list[dict[str, Any]], name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The first run that has a setting beside each of the others."""
    having = [run for run in settings if name in run]
    return [(having[0], other) for other in having[1:]]


def differences(a: Run, b: Run) -> dict[str, dict[str, list[Any]]]:
    """What differs between two runs, as ``{group: {name: [of a, of b]}}``; None where one of them has no such value.

    The groups are ``settings``, ``data``, ``versions`` and ``results``.

    Raises:
        UserError: for a run that is damaged.
    """
    corpus = [run.config["encoding"].get("sha256") for run in (a, b)]
    groups = {
        "settings": [run.config["settings"] for run in (a, b)],
        "data": [
            {name: run.config.get(name) for name in HASHES} | {"corpus_sha256": sha256}
            for run, sha256 in zip((a, b), corpus, strict=True)
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
        return {"steps": stopped_at(run), "ended": "running" if run.is_running() else "stopped"}
    values: dict[str, Any] = result.get("metrics") or {result["metric"]: result["test"]}
    return {f"test {name}": value for name, value in values.items()} | {name: result[name] for name in RESULTS}
