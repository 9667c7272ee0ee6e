"""The kinds of columns, decided on all rows, and the selection of columns."""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from own_data import csv, more, table, uses, whys, write

from attnlab.tasks.tables.cells import DATE_PARTS, date_parts
from attnlab.tasks.tables.columns import read_columns
from attnlab.tasks.tables.file import TableFile
from attnlab.tasks.tables.reader import read_table
from attnlab.tasks.tables.values import dates
from attnlab.utils.errors import UserError

COUNT = 307
LABELS = [["yes", "no"][i * i % 47 > 20] for i in range(COUNT)]
NUMBERS = [i * i % 101 / 7 for i in range(COUNT)]
UUIDS = [str(uuid.UUID(int=i * 7919**8)) for i in range(COUNT)]
PROSE = [f"review {i} says that it is {'good' if i % 3 else 'bad'}" for i in range(COUNT)]

GAPS = ["", "NA", "n/a", "NaN", "nan", "NULL", "null", "None", " ", "inf", "-Infinity", "?"]


def kind(values: Sequence[Any], name: str = "column") -> str:
    return read_columns(TableFile(pl.DataFrame({name: pl.Series(values, strict=False)}), Path("t.csv")))[0].kind


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1.5", "2", "-3e4", " 7 ", "+1", ".5"], "number"),
        (["1.5", "nan", "?", "inf", None, "2"], "number"),
        ([1.5, float("nan"), float("inf"), None, 2.0], "number"),
        ([3, 1, 2], "number"),
        ([True, False, True], "number"),
        ([datetime.timedelta(hours=1), datetime.timedelta(hours=3), None], "number"),
        ([datetime.time(3), datetime.time(5)], "number"),
        (["0", "1", "2", "3"], "id"),
        ([7, 8, 9], "id"),
        ([0.5, 1.5, 2.5], "number"),
        ([None, None], "none"),
        (["na", "", None], "none"),
        (["5", "5.0", None], "none"),
        (["x", "x", None], "none"),
        (["?", "?"], "none"),
        ([datetime.date(2024, 1, 2)] * 3, "none"),
        ([[1], [2]], "none"),
        ([{"a": 1}, {"a": 2}], "none"),
        ([b"\xff", b"\xfe"], "none"),
        (["red", "blue", "red", "blue"], "category"),
        (["true", "false", "true", "false"], "category"),
        (["1", "2", "many", "1", "2", "many"], "category"),
        (["a b", "c d", "e f"], "text"),
        (["1,5", "2,25", "3"], "id"),
        (["ACGT", "TGCA", "CATG"], "id"),
        (["a@b.c", "b@b.c", "c@b.c", "c@b.c"], "id"),
        (["2024-01-31", "2024-02-29T12:30", "2023-05-05 01:02:03.5Z", "2023-05-05T01:02:03+02:00"], "date"),
        (["2024/01/31", "2023/12/01", "?"], "date"),
        (["31.1.2024", "1.12.2023"], "date"),
        (["31 Jan 2024", "1 Feb 2023"], "date"),
        (["January 31, 2024", "February 1, 2023"], "date"),
        (["13/01/2024", "01/02/2024"], "date"),
        (["01/13/2024", "01/02/2024"], "date"),
        (["2024-01-31", "2024-02-30"], "id"),
        (["2024-01-31T12:59", "2024-02-28T12:60"], "id"),
        (["01/02/2024", "03/04/2024"], "none"),
        ([datetime.date(2024, 1, 2), datetime.date(2024, 1, 3)], "date"),
        ([datetime.datetime(2024, 1, 2, 3), None, datetime.datetime(2024, 1, 2, 4)], "date"),
    ],
)
def test_kinds(values: list[Any], expected: str) -> None:
    assert kind(values) == expected


@pytest.mark.parametrize("name", ["id", "ID", "userId", "customer_id", "PassengerId", "uuid", "Row", "index", "key-2"])
def test_identifiers_by_name(name: str) -> None:
    assert [kind(values, name) for values in ([5, 17, 3], [5, 17, 5], [5.5, 17.5, 3.5])] == ["id", "number", "number"]
    assert {kind([5, 17, 3], other) for other in ("width", "paid", "identity", "arrow", "monkey")} == {"number"}


def test_too_many_levels_are_no_category() -> None:
    many = [f"u{i}" for i in range(10_007)] * 2
    assert kind(many) == "id"
    assert kind(many[:9_999] * 2) == "category"
    assert kind([text + " " + "x" * 99 for text in many]) == "text"
    assert kind([f"{i} " + "x" * 300 for i in range(3_400)] * 2) == "text"  # a megabyte of different values


@pytest.mark.parametrize(
    ("columns", "asked", "expected"),
    [
        ({"key": UUIDS, "a": NUMBERS}, {}, ["left out: 307 different values in 307 rows", "number"]),
        ({"key": UUIDS, "a": NUMBERS}, {"features": ("key", "a")}, ["text", "number"]),
        ({"dna": UUIDS}, {}, ["text: .* no other columns"]),
        ({"a": range(COUNT)}, {}, ["number: consecutive integers"]),
        ({"a": [*GAPS, *NUMBERS[len(GAPS) :]]}, {}, ["number: .* 12 missing"]),
        ({"a": [*NUMBERS[:250], "?", *NUMBERS[251:]], "b": ["nan", *NUMBERS[1:]]}, {}, ["number: .* 1 missing"] * 2),
        ({"a": [*NUMBERS[:250], "12o", *NUMBERS[251:]], "b": NUMBERS}, {"ignore": ("a",)}, ["left out", "number"]),
        ({"a": NUMBERS, "b": NUMBERS[::-1]}, {"features": ("b",)}, ["left out: not in --features", "number"]),
        ({"a": NUMBERS, "b": NUMBERS[::-1]}, {"ignore": ("b",)}, ["number", "left out: in --ignore"]),
        *(
            ({"a": NUMBERS[::-1], "leak": values, "y": values}, {}, ["number", "left out: equal to the target y in ev"])
            for values in (NUMBERS, [f"of {i % 5} words" for i in range(COUNT)], LABELS)
        ),
    ],
)
def test_uses_of_columns(columns: dict[str, Any], asked: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    task_data = table(csv(tmp_path, **{"y": LABELS} | columns), "y", **asked)
    for name, use in zip((name for name in columns if name != "y"), expected, strict=True):
        assert re.match(use, f"{uses(task_data)[name]}: {whys(task_data)[name]}")
    assert len(task_data.baselines()) == 3


def test_parts_of_dates_that_vary(tmp_path: Path) -> None:
    times = [f"2024-03-{1 + i % 31:02}T{i % 24:02}:00:00Z" for i in range(COUNT)]
    task_data = table(csv(tmp_path, when=times, a=NUMBERS, y=LABELS), "y")
    assert uses(task_data) == {"when": "date", "a": "number", "y": "target"}
    parts = task_data.encoding["columns"]["dates"][0]["parts"]["names"]
    assert parts == ["days", "weekday_sin", "weekday_cos", "hour_sin", "hour_cos"]  # it is always March


def test_two_texts_are_both_read(tmp_path: Path) -> None:
    task_data = table(csv(tmp_path, one=PROSE, a=NUMBERS, two=PROSE[::-1], y=LABELS), "y")
    assert uses(task_data) == {"one": "text", "a": "number", "two": "text", "y": "target"}
    assert task_data.inputs == (("cells", 1 + 2 * 256, 1))
    for codes in (range(1, 257), range(257, 513)):
        assert all(any(int(code) in codes for code in row) for row in task_data.train.x[:, :, 0])


def test_numbers_far_from_the_training_rows(tmp_path: Path) -> None:
    task_data = table(csv(tmp_path, a=NUMBERS, y=LABELS), "y")
    with pytest.raises(UserError, match=r"a is 3e\+38 in row 1 of .*times the spread of the training rows"):
        more(csv(tmp_path, a=["3e38"]), task_data)


def test_dates_in_numbers() -> None:
    texts = ["1970-01-01", "1970-01-02T06:00:00Z", "1970-01-02T06:00+05:30", "2024-12-25 23:59:59.5", "1969-12-31"]
    days = dates(pl.Series([*texts, None]), "%Y-%m-%d").numbers
    expected = [0, 1.25, 1.25 - 5.5 / 24, 20082 + (86_400 - 0.5) / 86_400, -1, np.nan]
    assert days[:, 0] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert days[2, 1] == 1.25
    parts = date_parts(days)
    angles = np.arctan2(parts[:, 1::2], parts[:, 2::2]) / (2 * np.pi) % 1
    month, weekday, hour = angles.T * [[12], [7], [24]]
    assert month[:5] == pytest.approx([0, 0, 0, 11, 11])
    assert weekday[:5] == pytest.approx([3, 4, 4, 2, 2])  # Monday is 0
    assert hour[1:5] == pytest.approx([6, 6, 24 - 0.5 / 3600, 0], abs=1e-6)
    assert np.isnan(parts[5]).all()
    assert len(DATE_PARTS) == parts.shape[1]


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kolkata"])
def test_date_types_and_texts_agree(zone: str | None) -> None:
    times = [datetime.datetime(2024, 1, 31, 12, 30), datetime.datetime(1969, 5, 6, 7, 8, 9)]
    typed = pl.Series(times).dt.replace_time_zone(zone)
    text = typed.dt.to_string("%Y-%m-%dT%H:%M:%S" + ("%:z" if zone else ""))
    for column in (typed, typed.dt.cast_time_unit("ns")):
        assert dates(column, "%Y-%m-%d").numbers == pytest.approx(dates(text, "%Y-%m-%d").numbers, abs=1e-9)


def test_other_date_formats_in_new_rows(tmp_path: Path) -> None:
    task_data = table(csv(tmp_path, when=[f"{1 + i % 28}/{1 + i % 12}/2024" for i in range(COUNT)], y=LABELS), "y")
    x = more(csv(tmp_path, when=["2/3/2024", "2024-03-02", "2.3.2024", "2 Mar 2024"]), task_data).x
    assert (x == x[0]).all()


@pytest.mark.slow
def test_very_many_columns(tmp_path: Path) -> None:
    """Quadratic time in the number of columns would not end."""
    width = 10_007
    values = np.random.default_rng(3).random((13, width))
    frame = pl.DataFrame(values, schema=[f"c{i}" for i in range(width)])
    task_data = table(write(frame, tmp_path / "t.parquet"), "c7")
    assert task_data.inputs.numbers == width - 1
    assert len(task_data.columns) == width


@pytest.mark.parametrize(
    ("written", "read", "separator"),
    [
        (["1,234.50", "999.5", "-12,345,678", "5"], [1234.5, 999.5, -12345678, 5], ","),
        (["1,234", "999", "12,345", "5"], [1234, 999, 12345, 5], ","),
        (["12.5%", "3 %", "0%", "100%"], [12.5, 3, 0, 100], ","),
        (["$1,200.50", "-$3", "$ 7", "$.5"], [1200.5, -3, 7, 0.5], ","),
        (["12,50 €", "3 €", "1.200 €", "7,5€"], [12.5, 3, 1200, 7.5], ";"),
        (["1.234,50", "999,5", "-12.345.678", "5"], [1234.5, 999.5, -12345678, 5], ";"),
        (["1.234,50", "2.345,75", "3.456,25", "4.567,5"], [1234.5, 2345.75, 3456.25, 4567.5], ";"),
        (["3,14", "2,7", "1", "0,125"], [3.14, 2.7, 1, 0.125], ","),
        (["3,14", "2,7", "1", "0.125"], [3.14, 2.7, 1, 0.125], ";"),
    ],
)
def test_formatted_numbers(written: list[str], read: list[float], separator: str, tmp_path: Path) -> None:
    rows = [f'"{value}"{separator}{"ab"[i % 2]}' for i, value in enumerate(written * 5)]
    path = write("\n".join([f"x{separator}y", *rows]) + "\n", tmp_path / "t.csv")
    column = read_columns(read_table(path))[0]
    assert column.kind == "number"
    assert column.values[: len(read)].tolist() == read


@pytest.mark.parametrize(
    "written",
    [["$5", "€5", "$7", "€7"], ["5%", "6", "7%", "8"], ["1,23,4", "2,34,5", "1.2.3", "4"], ["1,5", "2,5", "1.5", "3"]],
)
def test_invalid_numbers(written: list[str], tmp_path: Path) -> None:
    assert read_columns(read_table(csv(tmp_path, x=written * 5, y=list("abab") * 5)))[0].kind == "category"
