"""The kinds of columns, decided on all rows, and the selection of columns."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from own_data import csv, table, uses, whys, write

from attnlab import tasks
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


def kind(values: Sequence[Any], name: str = "column", decimal: Any = ".") -> str:
    frame = pl.DataFrame({name: pl.Series(values, strict=False)})
    return read_columns(TableFile(frame, Path("t.csv"), decimal))[0].kind


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


def test_decimal_commas_are_numbers_only_in_such_files() -> None:
    assert [kind(["1,5", "2,25", "3"], decimal=decimal) for decimal in ".,"] == ["id", "number"]


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


def test_one_bad_value_late_in_a_column_of_numbers(tmp_path: Path) -> None:
    late: list[Any] = [*NUMBERS]
    late[250] = "?"
    task_data = table(csv(tmp_path, a=late, b=["nan", *NUMBERS[:0:-1]], y=LABELS), "y")
    assert uses(task_data) == {"a": "number", "b": "number", "y": "target"}
    assert all("1 missing" in whys(task_data)[name] for name in "ab")
    late[250] = "12o"
    path = csv(tmp_path, a=late, b=NUMBERS[::-1], y=LABELS)
    assert uses(table(path, "y", ignore=("a",)))["a"] == "left out"
    assert tasks.load("table").columns(path)["a"] == "numbers and text"


def test_uuids_do_not_replace_the_numbers(tmp_path: Path) -> None:
    task_data = table(csv(tmp_path, key=UUIDS, a=NUMBERS, y=LABELS), "y")
    assert uses(task_data) == {"key": "left out", "a": "number", "y": "target"}
    assert "307 different values in 307 rows" in whys(task_data)["key"]
    task_data = table(csv(tmp_path, key=UUIDS, a=NUMBERS, y=LABELS), "y", features=("key", "a"))
    assert uses(task_data) == {"key": "text", "a": "number", "y": "target"}


def test_timestamps_do_not_replace_the_numbers(tmp_path: Path) -> None:
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


def test_identifiers_are_used_if_there_are_no_other_columns(tmp_path: Path) -> None:
    task_data = table(csv(tmp_path, dna=UUIDS, y=LABELS), "y")
    assert uses(task_data)["dna"] == "text"
    assert "no other columns" in whys(task_data)["dna"]
    assert len(task_data.baselines()) == 3
    task_data = table(csv(tmp_path, x=range(COUNT), y=LABELS), "y")
    assert uses(task_data)["x"] == "number"


def test_parquet_categories_enumerations_and_decimals(tmp_path: Path) -> None:
    colours = [["red", "green"][i % 2] for i in range(COUNT)]
    frame = pl.DataFrame(
        {
            "a": pl.Series(colours, dtype=pl.Categorical),
            "b": pl.Series(colours, dtype=pl.Enum(["green", "red"])),
            "c": pl.Series(NUMBERS).cast(pl.Decimal(10, 3)),
            "y": pl.Series(LABELS, dtype=pl.Categorical),
        }
    )
    task_data = table(write(frame, tmp_path / "t.parquet"), "y")
    assert uses(task_data) == {"a": "category", "b": "category", "c": "number", "y": "target"}
    assert task_data.encoding["labels"] == ["no", "yes"]


@pytest.mark.parametrize(
    ("name", "values"), [("number", NUMBERS), ("text", [f"of {i % 5} words" for i in range(COUNT)]), ("label", LABELS)]
)
def test_copy_of_the_target_is_left_out(name: str, values: list[Any], tmp_path: Path) -> None:
    path = csv(tmp_path, a=NUMBERS[::-1], leak=values, y=values)
    task_data = table(path, "y")
    assert uses(task_data) == {"a": "number", "leak": "left out", "y": "target"}
    assert "equal to the target y in every row" in whys(task_data)["leak"]
    with pytest.raises(UserError, match="--features leak cannot be used: equal to the target"):
        table(path, "y", features=("leak",))


def test_features_and_ignore(tmp_path: Path) -> None:
    path = csv(tmp_path, alpha=NUMBERS, beta=NUMBERS[::-1], key=UUIDS, y=LABELS)
    task_data = table(path, "y", features=("beta",))
    assert uses(task_data) == {"alpha": "left out", "beta": "number", "key": "left out", "y": "target"}
    assert whys(task_data)["alpha"] == "not in --features"
    task_data = table(path, "y", ignore=("beta",))
    assert uses(task_data) == {"alpha": "number", "beta": "left out", "key": "left out", "y": "target"}
    assert whys(task_data)["beta"] == "in --ignore"


def test_numbers_far_from_the_training_rows(tmp_path: Path) -> None:
    task_data = table(csv(tmp_path, a=NUMBERS, y=LABELS), "y")
    with pytest.raises(UserError, match=r"a is 3e\+38 in row 1 of .*times the spread of the training rows"):
        tasks.load("table").read(csv(tmp_path, a=["3e38"]), task_data.inputs, task_data.length, task_data.encoding)


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
    path = csv(tmp_path, when=[f"{1 + i % 28}/{1 + i % 12}/2024" for i in range(COUNT)], y=LABELS)
    task_data = table(path, "y")
    task = tasks.load("table")
    same = ["2/3/2024", "2024-03-02", "2.3.2024", "2 Mar 2024"]
    split = task.read(csv(tmp_path, when=same), task_data.inputs, task_data.length, task_data.encoding)
    assert (split.x == split.x[0]).all()


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
    path = csv(tmp_path, x=written * 5, y=list("abab") * 5)
    assert read_columns(read_table(path))[0].kind == "category"
