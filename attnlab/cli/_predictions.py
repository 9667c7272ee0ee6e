"""The table that ``attnlab predict`` prints or writes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import polars as pl

from attnlab.files.atomic import atomically
from attnlab.tasks.tables.reader import HEADERLESS, read_table
from attnlab.utils.errors import UserError

NOT_IN_JSON = ("Binary", "Duration")
"""Parts of the names of column types that polars cannot write to a file of JSON lines."""
NOT_IN_CSV = (*NOT_IN_JSON, "List", "Array", "Struct")
"""The same for a CSV file."""


def as_frame(columns: dict[str, list[Any]], *, flat: bool) -> pl.DataFrame:
    """The predictions; with ``flat`` one of several values becomes one field, separated by spaces."""
    frame = pl.DataFrame(columns, strict=False)
    lists = [name for name, kind in frame.schema.items() if flat and isinstance(kind, pl.List)]
    return frame.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join(" ") for name in lists)


def beside(frame: pl.DataFrame, table: Path, *, header: bool) -> pl.DataFrame:
    """The columns of the table, then the predictions; ``header`` as in training.

    Raises:
        UserError: if the table has a column of the same name as the predictions.
    """
    kept = read_table(table, header=header or table.suffix.lower() not in HEADERLESS).frame
    if table.suffix.lower() == ".jsonl":
        kept = kept.with_columns(_nested(column) for column in kept if column.dtype == pl.List)
    if common := [name for name in frame.columns if name in kept.columns]:
        raise UserError(f"{table} already has a column {common[0]}; rename it, or leave out --keep_columns")
    return pl.concat([kept, frame], how="horizontal")


def _nested(column: pl.Series) -> pl.Series:
    """The values of a JSON lines file, which the table holds as lists of one JSON string each.

    They stay JSON strings where one column type cannot hold them, such as objects with different keys.
    """
    values = [None if texts is None else json.loads(texts[0]) for texts in column.to_list()]
    with contextlib.suppress(TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):  # no type holds them all
        series = pl.Series(column.name, values)
        if series.to_list() == values:
            return series
    return column.list.first()


def as_text(frame: pl.DataFrame, types: tuple[str, ...] = NOT_IN_CSV) -> pl.DataFrame:
    """The frame with columns of these types as text: durations in ISO 8601, bytes in hexadecimal, others as JSON."""

    def plain(value: Any) -> str:
        return value.hex() if isinstance(value, bytes) else str(value)

    def text(column: pl.Series) -> pl.Series:
        if column.dtype == pl.Duration:
            return column.dt.to_string("iso")
        if column.dtype == pl.Binary:
            return column.bin.encode("hex")
        values = (None if v is None else json.dumps(v, ensure_ascii=False, default=plain) for v in column.to_list())
        return pl.Series(column.name, list(values), dtype=pl.String)

    return frame.with_columns(text(column) for column in frame if any(name in str(column.dtype) for name in types))


def write(frame: pl.DataFrame, output: Path) -> None:
    """Write the frame in the format of the suffix."""
    with atomically(output, follow=True) as temporary:
        if output.suffix == ".csv":
            as_text(frame).write_csv(temporary)
        elif output.suffix == ".parquet":
            _typed(frame).write_parquet(temporary)
        else:
            as_text(_typed(frame), NOT_IN_JSON).write_ndjson(temporary)


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with numeric types for text columns in which every value is a plain number, as in a CSV file."""

    def typed(column: pl.Series) -> pl.Series:
        for kind in (pl.Int64, pl.Float64):
            numbers = column.cast(kind, strict=False)
            digits = column.str.extract(r"^-?[0.]*([0-9.]*)").str.count_matches("[0-9]")
            same = numbers.cast(pl.String) == column if kind == pl.Int64 else numbers.is_finite() & (digits <= 17)
            if same.sum() == column.len() - column.null_count() > 0 and not column.str.contains(r"^-?0\d|^\+").any():
                return numbers
        return column

    texts = [name for name, kind in frame.schema.items() if kind == pl.String and name != "prediction"]
    return frame.with_columns(typed(frame[name]) for name in texts)
