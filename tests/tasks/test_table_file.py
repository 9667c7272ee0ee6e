"""Reading of table files: CSV, JSON Lines and Parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import shutil
import socket
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from attnlab.files import data as data_files
from attnlab.files.npz import Arrays
from attnlab.tasks.tables import parquet_file
from attnlab.tasks.tables.file import TableFile
from attnlab.tasks.tables.reader import read_table
from attnlab.utils.errors import UserError


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer, **options)
    return buffer.getvalue()


PARQUET = parquet({"a": range(101), "b": ["x"] * 101})


def read(folder: Path, content: bytes | str, suffix: str = ".csv", **how: Any) -> TableFile:
    path = folder / f"t{suffix}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, **how)


@pytest.mark.parametrize(
    ("content", "fact", "expected"),
    [
        (b"a,b\n01,\n1,x\n", None, {"a": ["01", "1"], "b": [None, "x"]}),
        (b'\xef\xbb\xbf"a b",c\n1,2\n', None, {"a b": ["1"], "c": ["2"]}),
        (b"a,b\n1,2\n\n\n", None, {"a": ["1"], "b": ["2"]}),
        (b"a,b\r\n1,2\r\n\r\n3,4\r\n  \r\n", None, {"a": ["1", "3"], "b": ["2", "4"]}),
        (b"a,b\r1,2\r3,4", None, {"a": ["1", "3"], "b": ["2", "4"]}),
        (b"a,b,c\n1,2,3\n,,\n", None, {"a": ["1", None], "b": ["2", None], "c": ["3", None]}),
        (b"a;b\nx;y\n", "fields separated by semicolons", {"a": ["x"], "b": ["y"]}),
        (b"a\tb\nx, or y\tz\n", "fields separated by tabs", {"a": ["x, or y"], "b": ["z"]}),
        (b"a|b\nx|y;z\n", "fields separated by vertical bars", {"a": ["x"], "b": ["y;z"]}),
        (b"a,b\n1,up; down\n2,left; right\n", None, {"a": ["1", "2"], "b": ["up; down", "left; right"]}),
        (b"a\nx\ny\n", None, {"a": ["x", "y"]}),
        (  # the sample ends within a record
            b"name;height (cm, barefoot)\n" + b'"x\nz";1\n' * 1_009,
            "fields separated by semicolons",
            {"name": ["x\nz"] * 1_009, "height (cm, barefoot)": ["1"] * 1_009},
        ),
        ("a,b\nMünchen,Łódź\n".encode(), None, {"a": ["München"], "b": ["Łódź"]}),
        ("a,b\nMünchen,€\n".encode("cp1252"), "read as Windows-1252 (Latin-1)", {"a": ["München"], "b": ["€"]}),
        ("a,b\nZürich,é\n".encode("latin-1"), "read as Windows-1252 (Latin-1)", {"a": ["Zürich"], "b": ["é"]}),
        ("a,b\nŁódź,x\n".encode("utf-16"), "read as UTF-16", {"a": ["Łódź"], "b": ["x"]}),
        ("a,b\nŁódź,x\n".encode("utf-32"), "read as UTF-32", {"a": ["Łódź"], "b": ["x"]}),
    ],
)
def test_kinds_of_csv(content: bytes, fact: str | None, expected: dict[str, list[str | None]], tmp_path: Path) -> None:
    table = read(tmp_path, content)
    assert table.frame.to_dict(as_series=False) == expected
    assert set(table.frame.dtypes) == {pl.String}
    assert (table.decimal, table.summary_lines) == (".", () if fact is None else (fact,))


@pytest.mark.parametrize(
    ("content", "decimal"),
    [
        ("name;height (cm, barefoot)\nBob;1,5\nEve;2,5\n", ","),
        ("a;b\n1,5;2,25\n3,5;x\n", ","),
        ("a;b\n1,500;2\n3,500;x\n", ","),
        ("a;b\n1,500;2.5\n3,500;x\n", "."),
        ("a;b\nx, y;2.5\n", "."),
        ("a\tb\n1,500\tx\n", "."),
        ("a\tb\n1,50\tx\n", ","),
        ("a\tb\n0,500\tx\n", ","),
        ('a,b\n"1,5",x\n', ","),
        ('a,b\n"1,5",2.5\n', "."),
        ('a,b\n"1,500",x\n', "."),
        ("a;b\n12,5 %;x\n", ","),
        ("a;b\n1.234,567;x\n", ","),
    ],
)
def test_decimal_commas(content: str, decimal: str, tmp_path: Path) -> None:
    table = read(tmp_path, content)
    assert table.frame.width == 2
    assert table.decimal == decimal
    assert ("numbers with decimal commas" in table.summary_lines) == (decimal == ",")
    assert read(tmp_path, "a,x\tb\n1,5\t2\n", ".tsv").frame.columns == ["a,x", "b"]


def test_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.tasks.tables.csv_file._CHUNK_CELLS", 21)
    table = read(tmp_path, "a;b\n" + "".join(f"{i};x{i}\n" for i in range(101)) + "1;2,5\n")
    assert table.frame.rows() == [*((str(i), f"x{i}") for i in range(101)), ("1", "2,5")]
    assert table.decimal == ","
    assert table.locate(100).endswith("(line 102)")


def test_line_numbers_after_quoted_newlines_and_blank_lines(tmp_path: Path) -> None:
    table = read(tmp_path, 'a,b\n"x\r\ny\nz",1\n\n2,3\r\n"u\n",4\n')
    assert table.frame.rows()[0] == ("x\r\ny\nz", "1")
    assert [table.locate(row).split("(")[1] for row in range(3)] == ["line 2)", "line 6)", "line 7)"]
    assert table.locate(1) == f"row 2 of {tmp_path / 't.csv'} (line 6)"


def test_long_fields_and_the_limit_of_the_csv_module(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    table = read(tmp_path, f"a,b\n{'x' * 300_007},1\n")
    assert len(table.frame["a"][0]) == 300_007
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "content",
    [
        "1,2\n3,4\n",
        "5.1,3.5,setosa\n4.9,3.0,setosa\n6.1,2.0,virginica\n",
        "1,5;2,5\n3,5;4,5\n",
        "-1e3\n2\n",
    ],
)
def test_missing_header_is_detected(content: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add a line of names, or give --no_header"):
        read(tmp_path, content)
    table = read(tmp_path, content, header=False)
    assert len(table.frame) == content.count("\n")
    assert table.frame.columns == [f"column_{i + 1}" for i in range(table.frame.width)]
    assert table.locate(0).endswith("(line 1)")
    assert "no header" in table.summary_lines[-1]


@pytest.mark.parametrize(
    "content", ["0,1,2\n5,6,7\n", "a,1,2\nx,5,6\n", "2001,2002\nx,y\n", "a,b\n1,2\n", "1,b\n2,c\n"]
)
def test_numeric_column_names(content: str, tmp_path: Path) -> None:
    assert read(tmp_path, content).frame.columns == content.split("\n")[0].split(",")


@pytest.mark.parametrize(
    ("suffix", "content", "says"),
    [
        (".csv", "a,b\n1,2\n3\n", "line 3 has 1 field, but the header has 2"),
        (".csv", "a,b\n1,2\n3,4,5\n", "line 3 has 3 fields, but the header has 2"),
        (".csv", 'a,b\n"1\n\n2",2\n3,4,5\n', "line 5 has 3 fields, but the header has 2"),
        (".csv", "a,b\n" + "1,2\n" * 2_003 + ",\n,,\n", "line 2006 has 3 fields, but the header has 2"),
        (".csv", 'a,b\n1,2\n"3,4\n5,6\n', "line 3: a quotation mark is opened here and never closed"),
        (".csv", 'a,b\n"1"x,2\n', "line 2: "),
        (".csv", "a,b\n", "has no rows below its header; add some"),
        (".csv", "a,y,y\n1,2,3\n", "two columns are called y; rename one"),
        (".csv", '"y\n",a,"y\n"\n1,2,3\n', r"two columns are called 'y\\n'; rename one"),
        (".csv", f"{'y' * 200_003},{'y' * 200_003}\n1,2\n", "two columns are called y{60}\\.\\.\\.; rename one"),
        (".csv", ",a,b\n0,1,2\n", "column 1 has no name; give it one, or remove it"),
        (".csv", "a, \n0,1\n", "column 2 has no name"),
        (".csv", "\n\n", "holds only empty lines"),
        (".csv", "a,b\n1,\0\n", "is binary: line 2 holds a NUL byte"),
        (".csv", b"a,b\n1,2\n\x81,\xff\n", "line 3 of .* is no UTF-8 text; save it as UTF-8"),
        (".csv", b"a,b\n1,2\n\x01,\xff\n", "is binary: line 3 is no UTF-8 text"),
        (".csv", b"\xff\xfea\0,\0b\0\n\0\x00\xd8\n\0", "its byte order mark does not match its encoding"),
        (".csv", b"\xef\xbb\xbfa,b\n1,2\n\xe9,1\n", "line 3 of .* is no UTF-8 text"),
        (".jsonl", '{"a": 1}\n{broken\n', "line 2 is not valid JSON"),
        (".jsonl", '{"a": 1}\n\n[1]\n', "line 3 is not a JSON object"),
        (".jsonl", '{"a": 1}\n{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "line 2 is nested too deeply"),
        (".jsonl", '{"a": 1}\n{"a": ' + '{"a":' * 100_000 + "\n", "line 2 is nested too deeply"),
        (".jsonl", '{"a": 1, "a": 2}\n', "line 1: a occurs twice"),
        (".jsonl", '{"a": ' + "7" * 5_003 + "}\n", "line 1: a number has 5,003 digits"),
        (".jsonl", '{"": 1}\n', "column 1 has no name"),
        (".jsonl", '{"a": "x"}\n{"a": "\\ud800"}\n', "line 2: a is not valid Unicode"),
        (".jsonl", '{"\\ud800": 1}\n', "the name of column 1 is not valid Unicode"),
        (".jsonl", "\n\n", "holds only empty lines"),
        *((".parquet", b"PAR1" + PARQUET[4:][:size], "cannot be read as a table") for size in (0, 4, 11, 200, -1, -9)),
    ],
)
def test_invalid_files_are_refused(suffix: str, content: str | bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as error:
        read(tmp_path, content, suffix)
    assert "\n" not in str(error.value)


def test_json_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--no_header is for \.csv"):
        read(tmp_path, '{"a": 1}\n', ".jsonl", header=False)
    lines = ['{"a": 1, "b": "x", "c": 2, "e": null}', "", '{"a": null, "c": 1.5, "d": true, "e": null}']
    table = read(tmp_path, "\ufeff" + "\n".join(lines) + "\n\n", ".jsonl")
    assert table.frame.schema == {"a": pl.Int64, "b": pl.String, "c": pl.Float64, "e": pl.Null, "d": pl.Boolean}
    assert table.frame.rows() == [(1, "x", 2.0, None, None), (None, None, 1.5, None, True)]
    assert table.locate(1).endswith("row 2 of " + str(tmp_path / "t.jsonl") + " (line 3)")


def test_json_values_beyond_the_usual(tmp_path: Path) -> None:
    lines = [
        f'{{"huge": {2**64 + 3}, "float": NaN, "mixed": 1, "nested": [1, {{"z": 2}}]}}',
        f'{{"huge": {10**400}, "float": -Infinity, "mixed": "01", "nested": null}}',
        '{"huge": 5, "float": 1e999, "mixed": true, "nested": "\\ud800"}',
    ]
    frame = read(tmp_path, "\n".join(lines), ".jsonl").frame
    assert frame["huge"].to_list() == [str(2**64 + 3), str(10**400), "5"]
    assert math.isnan(frame["float"][0])
    assert frame["float"].to_list()[1:] == [-math.inf, math.inf]
    assert frame["mixed"].to_list() == ["1", "01", "true"]
    assert frame["nested"].dtype.is_nested()
    assert json.loads(frame["nested"][0][0]) == [1, {"z": 2}]


def test_keys_that_all_differ_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "memory_limit", lambda: 300 * 300 * 16)
    content = "".join(f'{{"k{i}": 1}}\n' for i in range(307))
    with pytest.raises(UserError, match="more than a quarter"):  # before the end is read
        read(tmp_path, content + "{broken", ".jsonl")
    assert read(tmp_path, "".join(content.splitlines(keepends=True)[:299]), ".jsonl").frame.shape == (299, 299)


def test_parquet_types(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "category": pl.Series(["x", "y", "x"], dtype=pl.Categorical),
            "enum": pl.Series(["u", "v", "v"], dtype=pl.Enum(["u", "v"])),
            "decimal": [Decimal("1.25"), None, Decimal("-3.50")],
            "day": [date(2024, 2, 29)] * 3,
            "nested": [[1], [2, 3], None],
            "n": [1, 2, 3],
        }
    )
    frame.write_parquet(tmp_path / "t[a=1].parquet")
    table = read_table(tmp_path / "t[a=1].parquet")
    assert table.frame.schema == {
        **{"category": pl.String, "enum": pl.String, "decimal": pl.Float64},
        **{"day": pl.Date, "nested": pl.List(pl.Int64), "n": pl.Int64},
    }
    assert table.frame["decimal"].to_list() == [1.25, None, -3.5]
    assert table.frame["enum"].to_list() == ["u", "v", "v"]
    assert table.locate(2) == f"row 3 of {tmp_path / 't[a=1].parquet'}"


@pytest.mark.parametrize(
    ("column", "limit", "says"),
    [
        (pl.repeat(7, 1_000_003, dtype=pl.Int64, eager=True), 8_000_000, r"8,000,024 bytes of .* \(8,000,000\)"),
        (pl.Series(["word " * 20_011, "word"] * 503), 2**24, r"5\d,\d{3},\d{3} bytes of memory"),
        (pl.Series(["word " * 20_011, "word"] * 503, dtype=pl.Categorical), 2**24, r"5\d,\d{3},\d{3} bytes of memory"),
    ],
)
def test_the_size_of_parquet_is_limited(
    column: pl.Series, limit: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A string that the file stores once counts in every row."""
    path = tmp_path / "t.parquet"
    column.to_frame("a").write_parquet(path)
    assert path.stat().st_size < 10_000
    for module in (data_files, parquet_file):
        monkeypatch.setattr(module, "memory_limit", lambda: limit)
    with pytest.raises(UserError, match=rf"\.parquet takes {says}"):
        read_table(path)


@pytest.mark.parametrize(("at", "value"), [(131, 27), (131, 30), (133, 17)])
def test_damaged_parquet_that_aborts_polars(
    at: int, value: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(parquet({"n": range(13)}, compression="uncompressed", statistics=False))
    content[at] = value
    with contextlib.suppress(UserError):  # another polars may write other bytes there
        read(tmp_path, bytes(content), ".parquet")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("executable", [shutil.which("true") or "", "", "/no/python"])
def test_parquet_is_read_if_the_probe_cannot_start(
    executable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    assert len(read(tmp_path, PARQUET, ".parquet").frame) == 101


@pytest.mark.slow
def test_hundred_thousand_columns(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(100_003)]
    table = read(tmp_path, f"{','.join(names)}\n" + f"{','.join(['1.5'] * len(names))}\n" * 3)
    assert table.frame.columns == names
    assert table.frame[names[-1]].to_list() == ["1.5"] * 3


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs pipes and sockets in the file system")
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".npz"])
def test_only_regular_files_are_opened(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    os.mkfifo(f"pipe{suffix}")
    Path(f"folder{suffix}").mkdir()
    Path(f"device{suffix}").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"socket{suffix}")
    monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("opened"))  # to open a device may do something
    open_file: Any = Arrays if suffix == ".npz" else read_table
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        open_file(Path(f"folder{suffix}"))
    for kind in ("pipe", "device", "socket"):
        with pytest.raises(UserError, match=f"is a {kind}; write its content to a file first"):
            open_file(Path(f"{kind}{suffix}"))
