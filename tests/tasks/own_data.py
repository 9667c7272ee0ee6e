"""What the tests of the user's own data share: files written and loaded in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from attnlab import tasks
from attnlab.tasks.base import Problem, Request, Split


def write(frame: pl.DataFrame | str, path: Path) -> Path:
    """A file of rows, in the format that its name says."""
    if isinstance(frame, str):
        path.write_text(frame, "utf-8")
    else:
        {".csv": frame.write_csv, ".jsonl": frame.write_ndjson, ".parquet": frame.write_parquet}[path.suffix](path)
    return path


def csv(tmp_path: Path, **columns: Any) -> Path:
    """A CSV file of columns that are written as they are."""
    return write(pl.DataFrame({name: list(map(str, values)) for name, values in columns.items()}), tmp_path / "t.csv")


def table(path: Path, target: str | None, **asked: Any) -> Problem:
    return tasks.load("table").load(Request(data=path, target=target, **asked))


def more(path: Path, problem: Problem, *, labelled: bool = False) -> Split:
    """Another file, encoded as the rows of ``problem``."""
    task: Any = tasks.load("table")
    read = task.read_labelled if labelled else task.read
    return read(path, problem.inputs, problem.length, problem.encoding)


def uses(problem: Problem) -> dict[str, str]:
    return {column.name: column.use for column in problem.columns}


def whys(problem: Problem) -> dict[str, str]:
    return {column.name: column.why for column in problem.columns}


def rows(problem: Problem) -> list[set[bytes]]:
    """The rows of each part, padding left out."""
    found = []
    for split in (problem.train, problem.validation, problem.test):
        lengths = [split.x.shape[1]] * len(split.x) if split.lengths is None else split.lengths.tolist()
        found.append({row[:n].numpy().tobytes() for row, n in zip(split.x, lengths, strict=True)})
    return found


def targets(problem: Problem) -> np.ndarray:
    """All targets in float64, in no particular order."""
    y = np.concatenate([part.y.double().numpy()[:, 0] for part in (problem.train, problem.validation, problem.test)])
    return y * problem.unit + problem.encoding.get("mean", 0.0)
