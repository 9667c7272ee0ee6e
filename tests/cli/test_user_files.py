"""User files in various formats, from training to predictions."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from pathlib import Path

import polars as pl
from calls import SMALL, call, output_of, trained, write_files

HEADS = ("--num_heads", "2", "--steps", "3")
ROWS = [(f"{i % 11 + 0.25:.2f}".replace(".", ","), ["Zürich", "Genève"][i % 2], str(i * 7 % 13)) for i in range(47)]


def rows_of(*words: str) -> list[dict[str, str]]:
    """The rows that a command prints."""
    return list(csv.DictReader(io.StringIO(output_of(*words))))


def test_a_table_without_header_and_with_decimal_commas() -> None:
    Path("a.csv").write_bytes("".join(f"{a};{b};{c}\r\n" for a, b, c in ROWS).encode("cp1252"))
    train = (*SMALL, *HEADS, "--data", "a.csv", "--target", "column_2", "--run_dir", "run")
    assert "add a line of names, or give --no_header" in call(*train).err
    out = output_of(*train, "--no_header")
    for fact in ("a.csv: 47 rows", "fields separated by semicolons", "decimal commas", "Windows-1252", "no header"):
        assert fact in out.split("step ")[0], "before training"
    Path("b.csv").write_bytes(Path("a.csv").read_bytes() + b"\r\n")  # a blank line makes it another file
    rows = rows_of("predict", "run", "--data", "b.csv", "--keep_columns")
    assert [(row["column_1"], row["column_2"], row["column_3"]) for row in rows] == ROWS
    assert {row["prediction"] for row in rows} <= {"Zürich", "Genève"}
    assert json.loads(output_of("evaluate", "run", "--data", "b.csv", "--json"))["test_examples"] == 47


def test_a_text_split_by_lines() -> None:
    text = b"".join(b"    x%d = f(x%d)\n" % (i % 7, i % 5) for i in range(97)) + b"\n"
    write_files(Path(), {"code.txt": text, "new.txt": text + b"\n", "latin.txt": "Zürich\nGenève".encode("latin-1")})
    out = output_of(*SMALL, *HEADS, "--data", "code.txt", "--seq_length", "13", "--run_dir", "run")
    for words in ("code.txt: 1,456 bytes in 98 lines", "split by lines", "generate run --prompt"):
        assert words in out
    rows = rows_of("predict", "run", "--data", "code.txt")
    assert (len(rows), rows[1]["line"]) == (98, "    x1 = f(x1)")
    assert (rows[97]["line"], rows[97]["bits_per_byte"], rows[97]["bytes"]) == ("", "", "0")
    assert [row["line"] for row in rows_of("predict", "run", "--data", "latin.txt")] == ["Zürich", "Genève"]
    assert json.loads(output_of("evaluate", "run", "--data", "new.txt", "--json"))["test_examples"] == 1_456 // 13


def test_predictions_are_scored_on_rows_with_a_target() -> None:
    """A quantity whose standardized value is -1, and rows whose target is still open, cost no other row."""
    rows = [(i * 7 % 31, i % 2 * 10) for i in range(60)]
    Path("a.csv").write_text("a,y\n" + "".join(f"{a},{y}\n" for a, y in rows))
    train = (*HEADS, "--data", "a.csv", "--target", "y")
    trained(*train, "--target_type", "number", run="number")
    config = json.loads(Path("number/config.json").read_text())
    assert (config["encoding"]["mean"], config["encoding"]["unit"]) == (5.0, 5.0)
    assert "on the 60 rows with a known target" in call("predict", "number", "--data", "a.csv").err
    trained(*train, run="classes")
    part = "".join(f"{a},{['', y, 'NA', '?'][i % 4]}\n" for i, (a, y) in enumerate(rows))
    Path("part.csv").write_text(f"a,y\n{part}")
    for run in ("number", "classes"):
        done = call("predict", run, "--data", "part.csv", "--output", "part.jsonl", "--overwrite", "--keep_columns")
        assert done.code == 0, done.err
        assert "on the 15 rows with a known target" in done.err
        assert len(Path("part.jsonl").read_text().splitlines()) == 60
        done = call("evaluate", run, "--data", "part.csv")
        assert "y is missing or not finite in row 1 of part.csv (line 2); fill it in" in done.err


# Columns that were not there in training are kept beside the predictions.


def test_kept_columns_of_every_type(here: Path) -> None:
    n = 43
    columns = {
        "a": [float(i * 7 % 31) for i in range(n)],
        "b": [i % 5 for i in range(n)],
        "took": [timedelta(minutes=i) for i in range(n)],
        "raw": [b"\xff%d" % i for i in range(n)],
        "tags": [["ü", None][: i % 3] for i in range(n)],
        "at": [{"x": i, "y": b"\x01"} for i in range(n)],
        "done": [bool(i % 2) for i in range(n)],
    }
    pl.DataFrame(columns).write_parquet("a.parquet")
    for name in ("o.csv", "o.jsonl", "o.parquet"):
        output_of("predict", "runs/one", "--data", "a.parquet", "--keep_columns", "--output", name)
    assert pl.read_parquet("o.parquet").select(*columns).to_dict(as_series=False) == columns
    line = json.loads(Path("o.jsonl").read_text("utf-8").splitlines()[2])
    assert [line[name] for name in columns] == [14, 2, "PT2M", "ff32", ["ü", None], '{"x": 2, "y": "01"}', False]
    row = list(csv.DictReader(io.StringIO(Path("o.csv").read_text("utf-8"))))[2]
    assert row["took"] == "PT2M"
    assert (row["raw"], row["tags"], row["at"]) == ("ff32", '["ü", null]', '{"x": 2, "y": "01"}')


def test_kept_columns_of_json_lines_and_of_digits(here: Path) -> None:
    lines = [{"a": i * 7 % 31, "b": 3, "n": {"x": [i]}, "m": [1, "b"]} for i in range(43)]
    texts = {"long": "123456789012345678901234", "phone": "+4144000000", "zip": "0800", "number": "0.30000000000000004"}
    written = {}
    write_files(
        here,
        {
            "a.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
            "a.csv": f"a,b,{','.join(texts)}\n" + f"2,3,{','.join(texts.values())}\n" * 43,
        },
    )
    for name in ("a.jsonl", "a.csv"):
        output_of("predict", "runs/one", "--data", name, "--keep_columns", "--output", "o.jsonl", "--overwrite")
        written[name] = list(map(json.loads, Path("o.jsonl").read_text().splitlines()))
    assert [{name: row[name] for name in ("a", "b", "n")} for row in written["a.jsonl"]] == [
        {name: line[name] for name in ("a", "b", "n")} for line in lines
    ]
    assert written["a.jsonl"][0]["m"] == '[1, "b"]'  # no column holds numbers and words
    assert [written["a.csv"][0][name] for name in texts] == [*list(texts.values())[:3], 0.30000000000000004]


def test_columns_are_found_by_name(here: Path) -> None:
    write_files(here, {"new.csv": "b,a\n1,6\n4,0.5\n", "again.csv": "a,b\n6,1\n0.5,4\n"})
    new, again = (rows_of("predict", "runs/one", "--data", name) for name in ("new.csv", "again.csv"))
    assert new == again


def test_column_names_with_spaces_around_them() -> None:
    Path("a.csv").write_text(" a , y \n" + "".join(f" {i * 7 % 31} , {'pq'[i % 2]}\n" for i in range(43)))
    trained(*HEADS, "--data", "a.csv", "--target", "y")
    rows = rows_of("predict", "run", "--data", "a.csv", "--keep_columns")
    assert [*rows[0]][:3] == ["a", "y", "prediction"]
    assert {row["prediction"] for row in rows} <= {" p", " q"}
