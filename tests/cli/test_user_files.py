"""User files in various formats, from training to predictions."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta
from pathlib import Path

import polars as pl
from calls import call

SMALL = ("--embed_dim", "8", "--layers", "1", "--num_heads", "2", "--steps", "3")
ROWS = [(f"{i % 11 + 0.25:.2f}".replace(".", ","), ["Zürich", "Genève"][i % 2], str(i * 7 % 13)) for i in range(47)]


def test_a_table_without_header_and_with_decimal_commas() -> None:
    Path("a.csv").write_bytes("".join(f"{a};{b};{c}\r\n" for a, b, c in ROWS).encode("cp1252"))
    train = ("train", "--data", "a.csv", "--target", "column_2", *SMALL, "--run_dir", "run")
    assert "add a line of names, or give --no_header" in call(*train).err
    done = call(*train, "--no_header")
    assert done.code == 0, done.err
    for fact in ("fields separated by semicolons", "decimal commas", "Windows-1252", "no header"):
        assert fact in done.out
    Path("b.csv").write_bytes(Path("a.csv").read_bytes() + b"\r\n")  # a blank line makes it another file
    done = call("predict", "run", "--data", "b.csv", "--keep_columns")
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [(row["column_1"], row["column_2"], row["column_3"]) for row in rows] == ROWS
    assert {row["prediction"] for row in rows} <= {"Zürich", "Genève"}
    done = call("evaluate", "run", "--data", "b.csv", "--json")
    assert json.loads(done.out)["test_examples"] == 47


def test_a_text_split_by_lines() -> None:
    Path("code.txt").write_bytes(b"".join(b"    x%d = f(x%d)\n" % (i % 7, i % 5) for i in range(97)) + b"\n")
    done = call("train", "--data", "code.txt", "--seq_length", "13", *SMALL, "--run_dir", "run")
    assert done.code == 0, done.err
    assert "code.txt: 1,456 bytes in 98 lines" in done.out
    assert "split by lines" in done.out
    done = call("predict", "run", "--data", "code.txt")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert len(rows) == 98
    assert rows[1]["line"] == "    x1 = f(x1)"
    assert (rows[97]["line"], rows[97]["bits_per_byte"], rows[97]["bytes"]) == ("", "", "0")
    Path("new.txt").write_bytes(Path("code.txt").read_bytes() + b"\n")
    done = call("evaluate", "run", "--data", "new.txt", "--json")
    assert json.loads(done.out)["test_examples"] == 1_456 // 13


def test_predictions_are_scored_on_rows_with_a_target() -> None:
    """A quantity whose standardized value is -1, and rows whose target is still open, cost no other row."""
    rows = [(i * 7 % 31, i % 2 * 10) for i in range(60)]
    Path("a.csv").write_text("a,y\n" + "".join(f"{a},{y}\n" for a, y in rows))
    train = ("train", "--data", "a.csv", "--target", "y", *SMALL)
    assert call(*train, "--target_type", "number", "--run_dir", "number").code == 0
    config = json.loads(Path("number/config.json").read_text())
    assert (config["encoding"]["mean"], config["encoding"]["unit"]) == (5.0, 5.0)
    assert "on the 60 rows with a known target" in call("predict", "number", "--data", "a.csv").err
    assert call(*train, "--run_dir", "classes").code == 0
    Path("part.csv").write_text(
        "a,y\n" + "".join(f"{a},{['', y, 'NA', '?'][i % 4]}\n" for i, (a, y) in enumerate(rows))
    )
    for run in ("number", "classes"):
        done = call("predict", run, "--data", "part.csv", "--output", "part.jsonl", "--overwrite", "--keep_columns")
        assert done.code == 0, done.err
        assert "on the 15 rows with a known target" in done.err
        assert len(Path("part.jsonl").read_text().splitlines()) == 60
        done = call("evaluate", run, "--data", "part.csv")
        assert "y is missing or not finite in row 1 of part.csv (line 2); fill it in" in done.err


def test_kept_columns_of_every_type() -> None:
    n = 43
    columns = {
        "a": [float(i * 7 % 31) for i in range(n)],
        "took": [timedelta(minutes=i) for i in range(n)],
        "raw": [b"\xff%d" % i for i in range(n)],
        "tags": [["ü", None][: i % 3] for i in range(n)],
        "at": [{"x": i, "y": b"\x01"} for i in range(n)],
        "y": [bool(i % 2) for i in range(n)],
    }
    pl.DataFrame(columns).write_parquet("a.parquet")
    assert call("train", "--data", "a.parquet", "--target", "y", *SMALL, "--run_dir", "run").code == 0
    predict = ("predict", "run", "--data", "a.parquet", "--keep_columns")
    for name in ("o.csv", "o.jsonl", "o.parquet"):
        done = call(*predict, "--output", name)
        assert done.code == 0, done.err
    assert pl.read_parquet("o.parquet").select(*columns).to_dict(as_series=False) == columns
    line = json.loads(Path("o.jsonl").read_text("utf-8").splitlines()[2])
    assert [line[name] for name in columns] == [14, "PT2M", "ff32", ["ü", None], '{"x": 2, "y": "01"}', False]
    row = list(csv.DictReader(io.StringIO(Path("o.csv").read_text("utf-8"))))[2]
    assert row["took"] == "PT2M"
    assert (row["raw"], row["tags"], row["at"]) == ("ff32", '["ü", null]', '{"x": 2, "y": "01"}')


def test_kept_columns_of_json_lines() -> None:
    lines = [{"a": i * 7 % 31, "n": {"x": [i]}, "m": [1, "b"], "y": "pq"[i % 2]} for i in range(43)]
    Path("a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert call("train", "--data", "a.jsonl", "--target", "y", *SMALL, "--run_dir", "run").code == 0
    done = call("predict", "run", "--data", "a.jsonl", "--keep_columns", "--output", "o.jsonl")
    assert done.code == 0, done.err
    written = list(map(json.loads, Path("o.jsonl").read_text().splitlines()))
    assert [{name: row[name] for name in ("a", "n", "y")} for row in written] == [
        {name: line[name] for name in ("a", "n", "y")} for line in lines
    ]
    assert written[0]["m"] == '[1, "b"]'  # no column holds numbers and words


def test_kept_columns_of_digits_keep_every_digit() -> None:
    texts = {"long": "123456789012345678901234", "phone": "+4144000000", "zip": "0800", "number": "0.30000000000000004"}
    Path("a.csv").write_text(
        "a,y,"
        + ",".join(texts)
        + "\n"
        + "".join(f"{i * 7 % 31},{'pq'[i % 2]},{','.join(texts.values())}\n" for i in range(43))
    )
    assert call("train", "--data", "a.csv", "--target", "y", *SMALL, "--run_dir", "run").code == 0
    assert call("predict", "run", "--data", "a.csv", "--keep_columns", "--output", "o.jsonl").code == 0
    line = json.loads(Path("o.jsonl").read_text().splitlines()[0])
    assert [line[name] for name in texts] == [*list(texts.values())[:3], 0.30000000000000004]


def test_column_names_with_spaces_around_them() -> None:
    Path("a.csv").write_text(" a , y \n" + "".join(f" {i * 7 % 31} , {'pq'[i % 2]}\n" for i in range(43)))
    done = call("train", "--data", "a.csv", "--target", "y", *SMALL, "--run_dir", "run")
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO(call("predict", "run", "--data", "a.csv", "--keep_columns").out)))
    assert [*rows[0]][:3] == ["a", "y", "prediction"]
    assert {row["prediction"] for row in rows} <= {" p", " q"}


def test_a_text_in_latin_1() -> None:
    Path("a.txt").write_bytes("Zürich liegt an der Limmat\n".encode("latin-1") * 40 + "Genève\n".encode())
    assert call("train", "--data", "a.txt", "--seq_length", "7", *SMALL, "--run_dir", "run").code == 0
    rows = list(csv.DictReader(io.StringIO(call("predict", "run", "--data", "a.txt").out)))
    assert (rows[0]["line"], rows[-1]["line"]) == ("Zürich liegt an der Limmat", "Genève")
