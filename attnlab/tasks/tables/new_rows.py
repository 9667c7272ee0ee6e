"""The columns of a trained network, read from another file, and checks of their values."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from attnlab.tasks._split import listed
from attnlab.tasks.tables.cells import ColumnValues, Layout
from attnlab.tasks.tables.columns import blocks, is_plain
from attnlab.tasks.tables.file import TableFile
from attnlab.tasks.tables.target import Locate
from attnlab.tasks.tables.values import DATES, LARGEST, dates, missing_rows, numbers, words
from attnlab.utils.errors import UserError


def column_values(layout: Layout, file: TableFile) -> ColumnValues:
    """The columns that ``layout`` names; UserError for a missing column, or a value of another kind, with its row."""
    frame = file.frame
    present = set(frame.columns)
    lacking = [name for name in layout.names if name not in present]
    if lacking:
        raise UserError(f"{file.path} lacks the column {listed(lacking)}; it has {listed(frame.columns)}")
    values: ColumnValues = {}
    numeric = [frame[name] for name in layout.numbers.names]
    for column in numeric:
        if not (is_plain(column) or column.dtype in (pl.String, pl.Null)):
            raise UserError(f"{column.name} in {file.path} holds no numbers; the network was trained on numbers")
    for group in blocks(numeric):
        parsed = numbers(group, file.decimal)
        for column, floats, other in zip(group, parsed.numbers, parsed.other, strict=True):
            values[column.name] = _with_booleans(column, floats, other, file.locate) if other.any() else floats
    for date in layout.dates:
        values[date.name] = _dates(frame[date.name], date.form, file.locate)
    for name in (part.name for group in (layout.categories, layout.texts) for part in group):
        if frame[name].dtype.is_nested() or frame[name].dtype == pl.Binary:
            raise UserError(f"{name} in {file.path} holds no text; the network was trained on text")
        values[name] = words(frame[name])
    return values


def refuse_gaps(values: ColumnValues, locate: Locate, why: str) -> None:
    """Raise UserError for the first missing value, with its column and row."""
    for name, column in values.items():
        missing = missing_rows(column)
        if missing.any():
            row = int(missing.argmax())
            raise UserError(f"{name} is missing in {locate(row)}, {why}; fill it in, or leave the row out")


def refuse_large(values: ColumnValues, locate: Locate) -> None:
    """Raise UserError for the first number that float32 cannot represent, with its column and row."""
    for name, column in values.items():
        if isinstance(column, pl.Series) or column.ndim > 1:
            continue
        large = np.abs(column) > LARGEST
        if large.any():
            row = int(large.argmax())
            raise UserError(
                f"{name} is {column[row]:g} in {locate(row)}; a network computes in float32, up to {LARGEST:.2g}: give "
                f"the column in a larger unit, or leave it out with --ignore {name}"
            )


def _with_booleans(column: pl.Series, parsed: NDArray[np.float64], other: NDArray[np.bool_], locate: Locate) -> Any:
    """Numbers in which true and false are 1 and 0, as in a CSV file with a column that was Boolean in training."""
    low = column.str.strip_chars().str.to_lowercase()
    truths = [(low == word).fill_null(False).to_numpy() for word in ("false", "true")]
    bad = other & ~truths[0] & ~truths[1]
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"{column.name} is {column[row][:40]!r} in {locate(row)}; the network was trained on numbers")
    return np.select([truths[0], truths[1]], [0.0, 1.0], parsed)


def _dates(column: pl.Series, form: str, locate: Locate) -> NDArray[np.float64]:
    """Dates in the format of training, or in another unambiguous format."""
    if column.dtype == pl.Null:
        column = column.cast(pl.String)
    if column.dtype not in (pl.String, pl.Date, pl.Datetime):
        raise UserError(f"{column.name} is {column.drop_nulls()[0]} in {locate(0)}; the network was trained on dates")
    parsed, _, other = dates(column, form)
    for another in DATES if other.any() else ():
        if "/" not in another or another.startswith("%Y"):
            more = dates(column, another)
            parsed = np.where(other[:, None], more.numbers, parsed)
            other = other & more.other
    if other.any():
        row = int(other.argmax())
        raise UserError(f"{column.name} is {column[row][:40]!r} in {locate(row)}; the network was trained on dates")
    return parsed
