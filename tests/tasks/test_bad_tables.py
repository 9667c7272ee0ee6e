"""Invalid tables and options are refused in one line, with the location of the error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from own_data import csv, table, write

from attnlab.utils.errors import UserError

COUNT = 67
X = [i * i % 61 / 7 + i for i in range(COUNT)]
LABELS = ["ab"[i % 2] for i in range(COUNT)]
DAYS = [f"2024-01-{1 + i % 31:02}" for i in range(COUNT)]
AMOUNTS = [f"${i * 997:,}" for i in range(COUNT)]
ALPHA = {"alpha": X, "beta": [3] * COUNT, "y": LABELS}


def row_41(values: list[Any], value: Any) -> list[Any]:
    """The values with another one in row 41, which is line 42 of a CSV file."""
    return [*values[:40], value, *values[41:]]


def cycle(*answers: Any) -> list[Any]:
    return [answers[i % len(answers)] for i in range(COUNT)]


def objects(y: Any) -> str:
    return "\n".join(json.dumps({"x": x, "y": y}) for x in X)


@pytest.mark.parametrize(
    ("content", "asked", "message"),
    [
        ("a,b\n1,2\n", {"target": None}, "with --target; choose from a, b"),
        ("a,b\n1,2\n", {"target": "c"}, "no column c; --target must be one of a, b"),
        ("alpha,b\n1,2\n", {"target": "alpah"}, "no column alpah; did you mean alpha"),
        ("a,y\n", {}, "no rows"),
        ("a,y\n" + "1,2\n" * 5, {}, r"too few rows .* \(5\)"),
        ("a,y\n" + "1,x\n" * 20, {}, r"one class \(x\)"),
        ("a,y\n" + "".join(f"{i},x\n" for i in range(20)) + "2,z\n", {}, r"fewer: z \(1\)"),
        ("a,y\n" + "1,x\n2,z\n" * 9 + "3,\n", {}, r"y is missing .* row 19 .*\(line 20\)"),
        ("y\n" + "x\nz\n" * 9, {}, "no column to predict y from"),
        ("a,y\n" + "1,x\n1,z\n" * 9, {}, "no column to predict y from; a: the same value"),
        ("a,y\n" + "".join(f"{i},1.5\n" for i in range(20)), {}, "y is 1.5 in every row"),
        ("a,y\n" + "".join(f"{i % 2},{i / 3}\n" for i in range(20)), {}, "only 2 different rows"),
        (ALPHA, {"seq_length": 7}, "--seq_length is for text"),
        (ALPHA, {"features": ("alhpa",)}, "no column alhpa .*in --features.*; did you mean alpha"),
        (ALPHA, {"ignore": ("zzz",)}, "no column zzz .*in --ignore.*; choose from alpha, beta, y"),
        (ALPHA, {"features": ("y",)}, "y is the --target, so it cannot be in --features"),
        (ALPHA, {"ignore": ("y",)}, "y is the --target, so it cannot be in --ignore"),
        (ALPHA, {"features": ("alpha",), "ignore": ("alpha",)}, "alpha is in --features and in --ignore"),
        (ALPHA, {"ignore": ("alpha", "beta")}, "no column to predict y from; alpha: in --ignore"),
        (ALPHA, {"features": ("beta",)}, "--features beta cannot be used: the same value in every row"),
        ({"a": row_41(X, "12o"), "y": LABELS}, {}, r"a holds numbers, but '12o' in row 41 .*\(line 42\); .*--ignore a"),
        ({"a": row_41(DAYS, "tomorrow"), "y": LABELS}, {}, "a holds dates, but 'tomorrow' in row 41"),
        ({"a": row_41(AMOUNTS, "free"), "y": LABELS}, {}, "a holds numbers, but 'free' in row 41"),
        *(
            ({"a": row_41(X, value), "y": LABELS}, {}, r"a is .* in row 41 of .*\(line 42\).*float32.*--ignore a")
            for value in ("3.5e38", "-1e39", "1e300", "1e999")
        ),
        ({"a": X, "y": row_41(X, "4o")}, {}, r"y holds numbers, but '4o' in row 41 .*--target_type class"),
        ({"a": X, "y": row_41(X, "?")}, {}, "y is missing or not finite in row 41"),
        *(
            ({"a": X, "y": row_41(X, value)}, {}, r"y is .* in row 41 of .*\(line 42\).*float32")
            for value in ("1e39", "-4e38", "1e999")
        ),
        *(  # the standard deviation of COUNT times 0.1 is not 0 in floating point
            ({"a": X, "y": cycle(*answers)}, {"target_type": "number"}, "y is .* in every row")
            for answers in (["0.1"], ["1e9"], ["3", "3.0"])
        ),
        ({"a": X, "y": [2**64 + i for i in range(COUNT)]}, {}, "in every row as a float64"),
        ({"a": X, "y": cycle("1", "b")}, {"target_type": "number"}, r"y is 'b' in row 2 of .*not a number"),
        ({"a": X, "y": [i / 3 for i in range(COUNT)]}, {"target_type": "class"}, r"fewer: .* \(1\)"),
        (
            {"a": X, "y": cycle("Mild", "None", "Severe")},
            {},
            "y is 'None' in row 2 .*means a missing value; if it is a class, give it",
        ),
        (objects([1]), {}, "y holds neither numbers nor strings"),
        (objects({"a": 1}), {}, "y holds neither numbers nor strings"),
        ({"a": row_41(X, ""), "y": LABELS}, {"missing": "error"}, "a is missing in row 41 of .*, and --missing error"),
        (
            {"a": [*[""] * 30, *X[30:]], "b": [*X[:30], *[""] * 37], "y": LABELS},
            {"missing": "drop"},
            r"every row of .* has a missing value, most of them in b \(37 rows\); .*--ignore b",
        ),
    ],
)
def test_invalid_tables_are_refused(content: Any, asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    if isinstance(content, str):
        path = write(content, tmp_path / ("t.jsonl" if content.startswith("{") else "t.csv"))
    else:
        path = csv(tmp_path, **content)
    with pytest.raises(UserError, match=message) as error:
        table(path, **({"target": "y"} | asked))
    assert "\n" not in str(error.value)
