"""Tables are loaded, or refused in one line with the location."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from own_data import csv, more, parts, row_bytes, table, targets, uses, write

from attnlab import tasks
from attnlab.network import Inputs
from attnlab.tasks.base import UNSEEN
from attnlab.utils.errors import UserError

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


def test_regression_is_standardized_by_the_training_rows(tmp_path: Path) -> None:
    task_data = table(write(FRAME, tmp_path / "t.csv"), "weight", features=("height", "age"))
    assert (task_data.metric, task_data.unit) == ("rmse", task_data.encoding["unit"])
    values = task_data.train.x[..., 1].double()
    assert values.mean(0).abs().max() < 1e-6
    assert values.std(0, unbiased=False) == pytest.approx([1, 1], abs=1e-5)
    assert task_data.test.x[..., 1].mean(0).abs().max() > 1e-3
    assert task_data.train.y.mean().abs() < 1e-5
    again = more(tmp_path / "t.csv", task_data).y[:, 0].double() * task_data.unit + task_data.encoding["mean"]
    assert again.numpy() == pytest.approx(FRAME["weight"].to_numpy(), abs=1e-4)
    assert np.sort(targets(task_data)) == pytest.approx(FRAME["weight"].sort().to_numpy(), abs=1e-4)
    errors = {b.name: b.values["rmse"] for b in task_data.baselines()}
    assert errors["ridge regression"] < 1  # weight follows from height
    assert 3 < errors["mean"] < 30


def mixed(count: int = 53) -> pl.DataFrame:
    """Every kind of column at once."""
    return pl.DataFrame(
        {
            "row": range(count),
            "size": [None if i == 7 else i * i % 47 / 3 for i in range(count)],
            "colour": [None if i == 11 else ["red", "green", "blue"][i % 3] for i in range(count)],
            "day": [f"2024-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(count)],
            "title": ["" if i == 13 else f"title number {i}" for i in range(count)],
            "body": [f"the body has {i * 7}é words" + " and more" * (i % 5) for i in range(count)],
            "code": [f"u{i:05x}" for i in range(count)],
            "kind": [["a", "b"][i * i % 47 > 20] for i in range(count)],
        }
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_all_kinds_of_columns_together(suffix: str, tmp_path: Path) -> None:
    frame = mixed().with_columns(same=pl.lit(3), nothing=pl.lit(None, pl.String))
    task_data = table(write(frame, tmp_path / f"t{suffix}"), "kind")
    used = {"size": "number", "colour": "category", "day": "date", "title": "text", "body": "text"}
    assert uses(task_data) == {**dict.fromkeys(frame.columns, "left out"), **used, "kind": "target"}
    kinds = {"row": "id", "code": "id", "kind": "category", "same": "one value"}
    assert tasks.load("table").columns(tmp_path / f"t{suffix}") == {**used, **kinds}
    # size, then days, sin and cos of the month and of the weekday; three colours, unknown and missing; two texts
    assert task_data.inputs == Inputs("cells", 6 + 5 + 2 * 256, 6)
    assert all(column.why for column in task_data.columns)
    split = task_data.train
    assert split.lengths is not None
    for row, n in zip(split.x, split.lengths.tolist(), strict=True):
        codes = row[:n, 0].int()
        assert codes[:6].tolist() == list(range(6))
        assert 6 <= codes[6] < 11
        title, body = codes[7:][codes[7:] < 267] - 11, codes[codes >= 267] - 267
        assert torch.equal(torch.cat([title + 11, body + 267]), codes[7:])  # one after the other
        assert bytes(title.tolist()).startswith(b"title number") or title.tolist() == [0]
        assert bytes(body.tolist()).startswith(b"the body has")
        assert (row[n:] == 0).all()
    assert len(task_data.baselines()) == 3


def test_texts_are_cut_after_bytes(tmp_path: Path) -> None:
    task_data = table(write(mixed(), tmp_path / "t.csv"), "kind", features=("body",), seq_length=15)
    assert task_data.inputs == Inputs("cells", 256)
    assert any(line.startswith("53 texts in body are cut after 15 bytes") for line in task_data.summary_lines)
    read = {bytes(row[:, 0].int().tolist()) for part in parts(task_data) for row in part.x}
    assert read == {text.encode()[:15] for text in mixed()["body"]}  # some end within a character


def test_evaluation_needs_every_target(tmp_path: Path) -> None:
    task_data = table(write(FRAME, tmp_path / "t.csv"), "town")
    again = more(tmp_path / "t.csv", task_data, labelled=True)
    assert again.y.shape == (41, 1)
    assert row_bytes(again) == set.union(*map(row_bytes, parts(task_data)))
    gap = write(FRAME.with_columns(town=pl.Series([None, "Rome", *FRAME["town"][2:]])), tmp_path / "gap.csv")
    assert more(gap, task_data).y[:4, 0].tolist() == [UNSEEN, UNSEEN, 1, 0]
    with pytest.raises(UserError, match=r"town is missing .* in row 1 of"):
        more(gap, task_data, labelled=True)
    less = write(FRAME.drop("town"), tmp_path / "less.csv")
    assert more(less, task_data).y.numel() == 0
    with pytest.raises(UserError, match="lacks the target town"):
        more(less, task_data, labelled=True)


def test_unknown_values(tmp_path: Path) -> None:
    task_data = table(write(mixed(), tmp_path / "t.csv"), "kind")
    row = mixed()[0]
    new = {
        "unknown": row.with_columns(colour=pl.lit("mauve")),
        "missing": row.with_columns(colour=pl.lit(" n/a "), size=pl.lit(None)),
        "known": row.with_columns(size=pl.lit("NaN")),
    }
    cells = {name: more(write(frame, tmp_path / "new.csv"), task_data).x[0] for name, frame in new.items()}
    assert [int(cells[name][6, 0]) - 6 for name in new] == [0, 1, 4]  # of blue, green and red the last
    assert cells["missing"][0].tolist() == cells["known"][0].tolist() == [0, 0]
    for frame, message in (
        (row.with_columns(size=pl.lit("tall")), r"size is 'tall' in row 1 of .*trained on numbers"),
        (row.with_columns(day=pl.lit("soon")), r"day is 'soon' in row 1 of .*trained on dates"),
        (row.drop("size", "body"), "lacks the column size, body"),
    ):
        with pytest.raises(UserError, match=message):
            more(write(frame, tmp_path / "new.csv"), task_data)


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_missing_values_are_refused_if_training_had_none(policy: str, tmp_path: Path) -> None:
    whole = mixed().filter(pl.col("size").is_not_null(), pl.col("colour").is_not_null(), pl.col("title") != "")
    write(mixed() if policy == "drop" else whole, tmp_path / "t.csv")
    task_data = table(tmp_path / "t.csv", "kind", missing=policy)
    assert len(targets(task_data)) == 50
    left_out = [fact for fact in task_data.summary_lines if fact.startswith("3 rows with a missing value are left out")]
    assert len(left_out) == (policy == "drop")
    with pytest.raises(UserError, match=f"size is missing in row 8 of .*--missing {policy}"):
        more(write(mixed(), tmp_path / "more.csv"), task_data)


def test_values_seen_once_share_the_code_of_unknown_ones(tmp_path: Path) -> None:
    """Otherwise the code of unknown values would never be trained."""
    colours = ["red", "green"] * 20 + [f"colour {i}" for i in range(13)]
    task_data = table(write(mixed().with_columns(colour=pl.Series(colours)), tmp_path / "t.csv"), "kind")
    assert task_data.encoding["columns"]["categories"] == [{"name": "colour", "levels": ["green", "red"]}]
    assert (task_data.train.x[:, 6, 0] == 6).sum() > 5


def test_encoding_of_another_version_is_refused(tmp_path: Path) -> None:
    task_data = table(write(FRAME, tmp_path / "t.csv"), "town")
    inputs, length, encoding = task_data.inputs, task_data.length, task_data.encoding
    columns, numbers = encoding["columns"], encoding["columns"]["numbers"]
    days = {"names": ["days"], "means": [0.0], "spreads": [1.0]}
    for wrong in (
        {"columns": ["height"], "shift": [1.0], "scale": [1.0], "labels": ["a", "b"]},
        {},
        {**encoding, "labels": []},
        {**encoding, "labels": ["1", 1]},
        {**encoding, "mean": "much"},
        *(
            {**encoding, "columns": {**columns, **part}}
            for part in (
                {"dates": [{"name": numbers["names"][0], "form": "%Y-%m-%d", "parts": days}]},
                {"texts": [{"name": "town", "bytes": 7}]},
                {"numbers": {**numbers, "means": []}},
                {"numbers": {**numbers, "spreads": [0.0] * 3}},
            )
        ),
    ):
        with pytest.raises(UserError, match="encoding of the table cannot be used"):
            tasks.load("table").read(tmp_path / "t.csv", inputs, length, wrong)
    for other_inputs, other_length in ((inputs._replace(size=3), length), (inputs, length - 1)):
        with pytest.raises(UserError, match="does not match the network"):
            tasks.load("table").read(tmp_path / "t.csv", other_inputs, other_length, encoding)


def test_every_suffix_has_one_task() -> None:
    endings = [suffix for name in tasks.names() for suffix in tasks.entry(name).suffixes]
    assert sorted(endings) == [".csv", ".jsonl", ".npz", ".parquet", ".tsv", ".txt"]


def test_leaking_column_is_named(tmp_path: Path) -> None:
    """A leaking column is used, because it may be legitimate, and named."""
    i = np.arange(61)
    answers = np.where(i % 2, "x", "z")
    path = csv(tmp_path, a=i * 7 % 31, code=np.where(i % 2, "A", "B"), number=3 + i % 2, other=i % 3 == 0, y=answers)
    fact = "each value of code, number occurs with one class of y only"
    assert any(line.startswith(fact) for line in table(path, "y").summary_lines)
