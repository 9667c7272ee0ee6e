"""Any table loads, or is refused in one line; loaded tables can be predicted and evaluated."""

from __future__ import annotations

import datetime
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import more, parts, row_bytes, uses, write

from attnlab import tasks
from attnlab.tasks.base import UNSEEN, TaskConfig
from attnlab.tasks.tables import parquet_file
from attnlab.utils.errors import UserError

Generator = np.random.Generator
WORDS = ["", "NA", "nan", "?", "inf", "1e999", "1", "01", "1.5", "-0", "1e38", "3.5e38", "red", "blue", "2024-01-01"]
LETTERS = np.array(list(string.printable + "éß漢🙂\u202e\x1b"))


def days(g: Generator) -> datetime.datetime:
    return datetime.datetime(1, 1, 1) + datetime.timedelta(seconds=int(g.integers(0, 315_000_000_000)))


VALUES: dict[str, Callable[[Generator], Any]] = {
    "words": lambda g: str(g.choice(WORDS)),
    "levels": lambda g: str(g.choice(["red", "green", "blue"])),
    "texts": lambda g: "".join(g.choice(LETTERS, g.integers(0, 9))),
    "prose": lambda g: " ".join(g.choice(["a", "good", "film", "é"], g.integers(0, 9))),
    "tame": lambda g: float(g.normal()),
    "far": lambda g: float(g.normal() + 1e12),
    "wild": lambda g: float(10 ** (g.uniform(-45, 38.6)) * g.choice([-1, 1])),
    "whole": lambda g: int(g.integers(-(2**63), 2**63 - 1)),
    "few": lambda g: int(g.integers(0, 3)),
    "truths": lambda g: bool(g.integers(0, 2)),
    "days": lambda g: days(g).date(),
    "times": days,
    "written days": lambda g: f"{g.integers(1, 29)}/{g.integers(1, 13)}/{g.integers(1, 3000):04}",
    "written times": lambda g: days(g).isoformat(),
    "lists": lambda g: [1] * int(g.integers(0, 3)),
    "nothing": lambda g: None,
}
TARGETS = ["levels", "few", "truths", "tame", "far", "words", "wild"]


def frame_of(g: Generator) -> pl.DataFrame:
    """A target and columns of one kind each: some with missing values, few values, or a stray string."""
    rows = int(g.integers(10, 61))
    columns = {}
    for name in ["y", *(str(g.choice([f"c{i}", f"id {i}"])) for i in range(g.integers(1, 5)))]:
        make = VALUES[str(g.choice(TARGETS if name == "y" else list(VALUES)))]
        values = [make(g) for _ in range(rows)]
        change = g.choice(["few", "gaps", "stray", "none"], p=[0.2, 0.1, 0.1, 0.6])
        if change == "few":
            values = [values[i % 7] for i in range(rows)]
        if change == "gaps":
            values = [None if i % 5 == 2 else value for i, value in enumerate(values)]
        if change == "stray":
            values = [str(values[i]) if i != 7 else str(g.choice(WORDS)) for i in range(rows)]
        columns[name] = pl.Series(values, strict=False)
    return pl.DataFrame(columns)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_any_table(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "_probe", lambda *_: None)  # a process per file; the files are not damaged
    loaded: list[dict[str, str]] = []
    refused: list[str] = []

    @settings(max_examples=settings.default.max_examples * 3 // 5)
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        g = np.random.default_rng(seed)
        frame = frame_of(g)
        missing: Any = g.choice(["mean", "mean", "drop", "error"])
        target_type: Any = g.choice([None, None, None, "class", "number"])
        if suffix == ".csv":
            frame = frame.with_columns(pl.col(c.name).list.len() for c in frame if c.dtype.is_nested())
        path = write(frame, tmp_path / f"t{suffix}")
        task: Any = tasks.load("table")
        try:
            task_data = task.load(
                TaskConfig(data=path, target="y", missing=missing, target_type=target_type, seed=seed % 7)
            )
        except UserError as error:
            refused.append(str(error))
            return
        loaded.append(uses(task_data))
        assert json.loads(json.dumps(task_data.encoding)) == task_data.encoding
        assert [column.name for column in task_data.columns] == frame.columns
        for part in parts(task_data):
            assert np.isfinite(part.x.numpy()).all()
            assert np.isfinite(part.y.numpy()).all()
            assert 0 <= part.x[..., 0].min() <= part.x[..., 0].max() < task_data.inputs.size
            assert part.x.shape[1] <= task_data.length
        if missing == "mean":
            again = more(path, task_data, labelled=True)
            assert len(again.x) == frame.height
            assert row_bytes(again) == set.union(*map(row_bytes, parts(task_data)))
            assert task_data.metric == "rmse" or (again.y != UNSEEN).all()
        assert len(task_data.baselines()) == 3  # one that fails is a warning, which is an error here

    check()
    assert len(loaded) > 20
    assert len(refused) > 5
    assert {"number", "category", "date", "text", "left out"} <= {use for each in loaded for use in each.values()}
