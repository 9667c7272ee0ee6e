"""Helpers that write and load data files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from attnlab import tasks
from attnlab.tasks.base import Split, TaskConfig, TaskData


def write(frame: pl.DataFrame | str, path: Path) -> Path:
    """A file of rows, in the format of its suffix."""
    if isinstance(frame, str):
        path.write_text(frame, "utf-8")
    else:
        {".csv": frame.write_csv, ".jsonl": frame.write_ndjson, ".parquet": frame.write_parquet}[path.suffix](path)
    return path


def csv(tmp_path: Path, **columns: Any) -> Path:
    """A CSV file of columns, unquoted."""
    return write(pl.DataFrame({name: list(map(str, values)) for name, values in columns.items()}), tmp_path / "t.csv")


def table(path: Path, target: str | None, **asked: Any) -> TaskData:
    return tasks.load("table").load(TaskConfig(data=path, target=target, **asked))


def arrays(tmp_path: Path, asked: dict[str, Any] | None = None, **given: Any) -> TaskData:
    np.savez(tmp_path / "a.npz", **given)
    return tasks.load("arrays").load(TaskConfig(data=tmp_path / "a.npz", **asked or {}))


def more(path: Path, task_data: TaskData, *, labelled: bool = False) -> Split:
    """Another file, encoded like ``task_data``."""
    task = tasks.load(tasks.for_file(path))
    read = task.read_labelled if labelled else task.read
    return read(path, task_data.inputs, task_data.length, task_data.encoding)


def uses(task_data: TaskData) -> dict[str, str]:
    return {column.name: column.use for column in task_data.columns}


def whys(task_data: TaskData) -> dict[str, str]:
    return {column.name: column.why for column in task_data.columns}


def parts(task_data: TaskData) -> tuple[Split, Split, Split]:
    return task_data.train, task_data.validation, task_data.test


def row_bytes(split: Split) -> set[bytes]:
    """The rows without padding."""
    lengths = [split.x.shape[1]] * len(split.x) if split.lengths is None else split.lengths.tolist()
    return {row[:n].numpy().tobytes() for row, n in zip(split.x, lengths, strict=True)}


def targets(task_data: TaskData) -> np.ndarray:
    """All targets in float64, in no particular order."""
    y = np.concatenate([part.y.double().numpy()[:, 0] for part in parts(task_data)])
    return y * task_data.unit + task_data.encoding.get("mean", 0.0)
