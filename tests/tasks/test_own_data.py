"""The user's own tables and arrays: understood as said, or refused in one line that says where."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from attnlab import tasks
from attnlab.errors import UserError
from attnlab.network import Inputs
from attnlab.task import Problem, Request

GENERATOR = np.random.default_rng(5)
HEIGHT = GENERATOR.normal(170, 11, 41).round(1)
FRAME = pl.DataFrame(
    {
        "height": HEIGHT,
        "age": GENERATOR.integers(18, 70, 41),
        "town": [["Bern", "Lund", "Cork"][i % 3] for i in range(41)],
        "weight": HEIGHT * 0.9 - 80,
        "smokes": [i % 3 == 0 for i in range(41)],
    }
)
TEXTS = pl.DataFrame(
    {
        "id": range(31),
        "review": [("a very good film, " if i % 2 else "a dull and long film, ") + "é" * i for i in range(31)],
        "stars": [[1, 5][i % 2] for i in range(31)],
    }
)


def write(frame: pl.DataFrame, path: Path) -> Path:
    {".csv": frame.write_csv, ".jsonl": frame.write_ndjson, ".parquet": frame.write_parquet}[path.suffix](path)
    return path


def table(path: Path, target: str | None, **asked: Any) -> Problem:
    return tasks.load("table").load(Request(data=path, target=target, **asked))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_three_formats_say_the_same(suffix: str, tmp_path: Path) -> None:
    problem = table(write(FRAME, tmp_path / f"t{suffix}"), "town")
    assert problem.encoding["labels"] == ["Bern", "Cork", "Lund"]
    assert problem.encoding["columns"] == ["height", "age", "weight", "smokes"]
    assert problem.train.x.shape[1:] == (4, 1)
    assert problem.metric == "accuracy"
    assert len({b.name for b in problem.baselines()}) == 3


def test_regression_is_in_the_users_unit(tmp_path: Path) -> None:
    problem = table(write(FRAME, tmp_path / "t.csv"), "weight")
    every = torch.cat([problem.train.y, problem.validation.y, problem.test.y])[:, 0].double()
    told = every * problem.encoding["unit"] + problem.encoding["mean"]
    assert sorted(told.tolist()) == pytest.approx(sorted(FRAME["weight"].to_list()), abs=1e-4)
    assert problem.metric == "rmse"
    assert problem.unit == problem.encoding["unit"]
    assert any("does not read town" in fact for fact in problem.facts)
    found = {b.name: b.values["rmse"] for b in problem.baselines()}
    assert found["ridge regression"] < 1  # weight follows from height
    assert 3 < found["mean"] < 30


def test_standardised_by_the_training_rows_alone(tmp_path: Path) -> None:
    problem = table(write(FRAME, tmp_path / "t.csv"), "weight")
    assert problem.train.x.mean(0).abs().max() < 1e-5
    assert problem.test.x.mean(0).abs().max() > 1e-3
    assert problem.train.y.mean().abs() < 1e-5


def test_text_is_read_as_bytes(tmp_path: Path) -> None:
    problem = table(write(TEXTS, tmp_path / "t.csv"), "stars", seq_length=23)
    assert problem.inputs == Inputs("tokens", 256)
    assert problem.encoding["labels"] == [1, 5]
    assert problem.train.lengths is not None
    row, length = problem.train.x[0], int(problem.train.lengths[0])
    assert bytes(row[:length].tolist()) in {text.encode()[:23] for text in TEXTS["review"]}
    assert row[length:].sum() == 0
    assert any("only the first 23 bytes" in fact for fact in problem.facts)
    assert any("does not read id" in fact for fact in problem.facts)
    assert max(b.values["accuracy"] for b in problem.baselines()) == 1  # the words tell it


def test_more_of_the_same_is_encoded_alike(tmp_path: Path) -> None:
    for frame, target in ((FRAME, "town"), (TEXTS, "stars")):
        path = write(frame, tmp_path / "t.csv")
        problem = table(path, target)
        write(frame.drop(target), tmp_path / "more.csv")
        more = tasks.load("table").read(tmp_path / "more.csv", problem.inputs, problem.length, problem.encoding)
        known = {row.numpy().tobytes() for row in more.x}
        assert all(row.numpy().tobytes() in known for row in problem.test.x)


@pytest.mark.parametrize(
    ("content", "target", "says"),
    [
        ("a,b\n1,2\n", None, "give --target; there are a, b"),
        ("a,b\n1,2\n", "c", "no column c; --target must be one of a, b"),
        ("a,b\n1,2\n3\n", "b", "line 3 has 1 field, the header 2"),
        ("a,b\n1,2\n3,4,5\n", "b", "line 3 has 3 fields, the header 2"),
        ("a,b\n", "b", "no rows"),
        ("a,b\n" + "1,2\n" * 5, "b", "too few rows .* \\(5\\)"),
        ("a,b\n" + "1,x\n" * 20, "b", "one class \\(x\\)"),
        ("a,b\n" + "1,x\n" * 20 + "2,y\n", "b", "y \\(1\\)"),
        ("a,b\n" + "1,x\n2,y\n" * 9 + ",x\n", "b", "a is missing .* row 19 .*\\(line 20\\)"),
        ("a,b\n" + "1,x\n2,y\n" * 9 + "3,\n", "b", "b is missing .* row 19"),
        ("b\n" + "x\ny\n" * 9, "b", "no other column"),
        ("a,b\n" + "".join(f"{i},1.5\n" for i in range(20)), "b", "one class \\(1.5\\)|the same b"),
    ],
)
def test_bad_csv(content: str, target: str | None, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content, "utf-8")
    with pytest.raises(UserError, match=says):
        table(tmp_path / "t.csv", target)


def test_bad_bytes_and_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,2\n\xff\xfe,3\n")
    with pytest.raises(UserError, match="line 3 is no UTF-8"):
        table(tmp_path / "t.csv", "b")
    (tmp_path / "t.jsonl").write_text(json.dumps({"a": 1}) + "\n{broken\n", "utf-8")
    with pytest.raises(UserError, match="line 2 is no JSON"):
        table(tmp_path / "t.jsonl", "a")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match="cannot be read as a table"):
        table(tmp_path / "t.parquet", "a")


def arrays(tmp_path: Path, **given: Any) -> Problem:
    np.savez(tmp_path / "a.npz", **given)
    return tasks.load("arrays").load(Request(data=tmp_path / "a.npz"))


X = np.random.default_rng(7).normal(3, 2, (37, 5, 3))


def test_arrays(tmp_path: Path) -> None:
    problem = arrays(tmp_path, x=X, y=np.arange(37) % 3)
    assert (problem.inputs, problem.length) == (Inputs("vectors", 3), 5)
    assert problem.encoding["labels"] == [0, 1, 2]
    more = tasks.load("arrays").read(tmp_path / "a.npz", problem.inputs, 5, problem.encoding)
    known = {row.numpy().tobytes() for row in more.x}
    assert all(row.numpy().tobytes() in known for row in problem.train.x)


def test_arrays_of_tokens_and_quantities(tmp_path: Path) -> None:
    problem = arrays(tmp_path, x=np.arange(37 * 5).reshape(37, 5) % 11, y=X[:, 0, 0])
    assert problem.inputs == Inputs("tokens", 11)
    assert problem.metric == "rmse"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"x": X}, "y is not there"),
        ({"z": X}, "holds z; expected x and y"),
        ({"x": X, "y": np.arange(36)}, "has shape (36,); expected (37,)"),
        ({"x": X[:, 0, 0], "y": np.arange(37)}, "expected (B, N, D)"),
        ({"x": X[:, :, 0], "y": np.arange(37)}, "expected whole numbers"),
        ({"x": np.full((37, 5), -1), "y": np.arange(37)}, "tokens count from 0"),
        ({"x": np.where(X[4, 1, 1] == X, np.nan, X), "y": np.arange(37) % 2}, "first in sequence 4"),
        ({"x": X, "y": np.where(np.arange(37) == 3, np.nan, X[:, 0, 0])}, "y holds NaN"),
        ({"x": X, "y": np.zeros(37, int)}, "one class (0)"),
        ({"x": X, "y": np.array([{}] * 37)}, "no readable .npz"),
    ],
)
def test_bad_arrays(given: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        arrays(tmp_path, **given)


@pytest.mark.parametrize("name", ["table", "arrays"])
def test_without_a_file(name: str) -> None:
    with pytest.raises(UserError, match="needs a file of yours: give --data"):
        tasks.load(name).load(Request())


def test_every_ending_has_one_task() -> None:
    endings = [suffix for name in tasks.names() for suffix in tasks.entry(name).suffixes]
    assert sorted(endings) == [".csv", ".jsonl", ".npz", ".parquet", ".tsv", ".txt"]
