"""JSON Lines files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from attnlab.tasks.tables.file import MalformedError, TableFile, check_cells, check_names, open_lines, shown

_INT64 = range(-(2**63), 2**63)


def read_jsonl(path: Path) -> TableFile:
    """Read a file with one JSON object per line; missing keys become null. MalformedError has the line of the error.

    A column of numbers, Booleans or strings has that type. Integers beyond 64 bits and values of mixed types become
    strings; lists and objects become their JSON text in a list.
    """
    columns: dict[str, list[Any]] = {}
    lines: list[int] = []
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_int=_integer)
    with open_lines(path) as (text, encoding):
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            for name, value in _parsed(decoder, line, number).items():
                if name not in columns:
                    columns[name] = []
                    check_cells(path, len(lines) + 1, len(columns))
                columns[name] += [None] * (len(lines) - len(columns[name]))
                columns[name].append(value)
            lines.append(number)
    if not lines:
        raise MalformedError("it holds only empty lines")
    check_names(list(columns))
    check_cells(path, len(lines), len(columns))
    series = []
    for name, column in columns.items():
        column.extend([None] * (len(lines) - len(column)))
        series.append(_series(name, column, lines))
    summary_lines = (f"read as {encoding}",) if encoding else ()
    return TableFile(pl.DataFrame(series), path, summary_lines=summary_lines, lines=np.array(lines, np.int64))


def _parsed(decoder: json.JSONDecoder, line: str, number: int) -> dict[str, Any]:
    try:
        value = decoder.decode(line)
    except json.JSONDecodeError as error:
        raise MalformedError(f"line {number} is not valid JSON ({error.msg})") from None
    except RecursionError:
        raise MalformedError(f"line {number} is nested too deeply") from None
    except ValueError as error:
        raise MalformedError(f"line {number}: {error}") from None
    if not isinstance(value, dict):
        raise MalformedError(f"line {number} is not a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{shown(name)} occurs twice; rename one")
        values[name] = value
    return values


def _integer(digits: str) -> int:
    if len(digits) > 4_000:  # the limit of Python's conversion
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _series(name: str, column: list[Any], lines: list[int]) -> pl.Series:
    kinds = {type(value) for value in column} - {type(None)}
    if kinds & {list, dict}:
        nested = [None if value is None else [json.dumps(value)] for value in column]
        return pl.Series(name, nested, dtype=pl.List(pl.String))
    if kinds == {bool}:
        return pl.Series(name, column, dtype=pl.Boolean)
    if kinds == {int} and all(value is None or value in _INT64 for value in column):
        return pl.Series(name, column, dtype=pl.Int64)
    if kinds and kinds <= {int, float} and float in kinds:
        return pl.Series(name, [None if value is None else _float(value) for value in column], dtype=pl.Float64)
    if not kinds:
        return pl.Series(name, column, dtype=pl.Null)
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in column]
    for text, line in zip(texts, lines, strict=True):
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            raise MalformedError(f"line {line}: {shown(name)} is not valid Unicode ({shown(text or '')})") from None
    return pl.Series(name, texts, dtype=pl.String)


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)
