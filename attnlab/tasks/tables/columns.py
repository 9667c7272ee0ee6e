"""The kinds of the columns of a table: numbers, dates, categories, texts or identifiers; decided on all rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from attnlab.tasks._split import listed
from attnlab.tasks.base import ColumnUse, TaskConfig
from attnlab.tasks.tables.file import TableFile
from attnlab.tasks.tables.values import MAX_CODES, MOSTLY, Values, date_formats, dates, missing_rows, numbers
from attnlab.utils.errors import UserError, nearest

MAX_LEVELS = 10_000
MAX_LEVEL_BYTES = 1_000_000
"""A column whose different values have more bytes in total is a text."""
BLOCK_CELLS = 5_000_000
"""Cells that are parsed at once."""

_ID_NAMES = {"id", "ids", "index", "idx", "key", "uuid", "guid", "row", "rowid"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: its name in the file.
        kind: ``mixed`` contains an error, and ``none`` cannot be used.
        why: the reason for the kind, for display.
        values: an array, (rows,) of a ``number`` or (rows, 2) of a ``date`` (see `dates`), NaN where missing; a series
            of strings of the others, null where missing.
        form: the date format.
    """

    name: str
    kind: Literal["number", "date", "category", "text", "id", "mixed", "none"]
    why: str
    values: Any
    form: str = ""

    @property
    def missing(self) -> NDArray[np.bool_]:
        """(rows,), where a value is missing."""
        return missing_rows(self.values)


def read_columns(file: TableFile) -> list[Column]:
    """Every column of a file, in order."""
    frame = file.frame
    known: dict[str, Column] = {}
    for columns in blocks([c for c in frame if is_plain(c) or c.dtype == pl.String]):
        values = numbers(columns, file.decimal)
        known |= {column.name: column for column in _numeric(columns, values)}
        for i, column in enumerate(columns):
            if column.name not in known:
                known[column.name] = _of_strings(column, values.other[i], values.missing[i], file)
    return [known.get(c.name) or _of_others(c) for c in frame]


def choose(columns: Sequence[Column], target: str, config: TaskConfig) -> tuple[list[Column], dict[str, ColumnUse]]:
    """The columns to predict from, and the use of every column; UserError for options that contradict the table."""
    by_name = {column.name: column for column in columns}
    named, ignored = dict.fromkeys(config.features or ()), dict.fromkeys(config.ignore)
    for option, names in {"features": named, "ignore": ignored}.items():
        for name in names:
            if name not in by_name:
                near = nearest(name, by_name)
                hint = f"did you mean {near}?" if near else f"choose from {listed(list(by_name), 20)}"
                raise UserError(f"{config.data} has no column {name} (in --{option}); {hint}")
            if name == target:
                raise UserError(f"{name} is the --target, so it cannot be in --{option}; remove it there")
    if both := [name for name in named if name in ignored]:
        raise UserError(f"{listed(both)} is in --features and in --ignore; remove it from one of them")
    used: dict[str, Column] = {}
    reasons: dict[str, str] = {}
    for column in columns:
        name = column.name
        if name == target:
            continue
        if name in ignored or (named and name not in named):
            reasons[name] = "in --ignore" if name in ignored else "not in --features"
        elif _same(column.values, by_name[target].values):
            reasons[name] = f"equal to the target {target} in every row, so it would leak the target"
        elif column.kind in ("id", "none"):
            reasons[name] = column.why
            if named and column.kind == "id":
                used[name] = _as_feature(column, "; used because --features names it")
        elif column.kind == "mixed":
            raise UserError(column.why)
        else:
            used[name] = column
    for name in named:
        if name not in used:
            raise UserError(f"--features {name} cannot be used: {reasons[name]}")
    if not used:  # all columns may be identifiers, such as DNA sequences
        left = [c for c in columns if c.kind == "id" and reasons.get(c.name) == c.why]
        used = {c.name: _as_feature(c, "; used because there are no other columns") for c in left}
    if not used:
        details = "".join(f"; {name}: {why}" for name, why in list(reasons.items())[:5])
        raise UserError(f"{config.data} has no column to predict {target} from{details}")
    uses = {name: ColumnUse(name, "left out", why) for name, why in reasons.items()}
    uses |= {name: ColumnUse(name, column.kind, column.why) for name, column in used.items()}
    return list(used.values()), uses


def is_plain(column: pl.Series) -> bool:
    """Whether a column has a numeric type."""
    return column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Duration, pl.Time)


def blocks(columns: Sequence[pl.Series]) -> Iterator[list[pl.Series]]:
    """Groups of columns of one type, each small enough to parse at once."""
    by_type: dict[pl.DataType, list[pl.Series]] = {}
    for column in columns:
        by_type.setdefault(column.dtype, []).append(column)
    for group in by_type.values():
        step = max(1, BLOCK_CELLS // max(1, len(group[0])))
        yield from (group[i : i + step] for i in range(0, len(group), step))


def _numeric(columns: Sequence[pl.Series], values: Values) -> Iterator[Column]:
    """The columns that hold numbers, or no value at all."""
    low, high = np.fmin.reduce(values.numbers, axis=1), np.fmax.reduce(values.numbers, axis=1)
    missing = values.missing.sum(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):  # strings such as 1e999 are infinite
        steps = np.diff(values.numbers, axis=1)
        consecutive = np.logical_and.reduce(steps == 1, axis=1) & (values.numbers[:, 0] % 1 == 0)
    for i in np.flatnonzero(~values.other.any(axis=1)).tolist():
        numbers, name = values.numbers[i], columns[i].name
        if missing[i] == len(numbers):
            yield Column(name, "none", "no value in any row", numbers)
        elif low[i] == high[i]:
            yield Column(name, "none", f"the same value in every row ({low[i]:.9g})", numbers)
        elif consecutive[i]:
            yield Column(name, "id", "consecutive integers", numbers)
        elif _ID_NAMES & set(map(str.lower, _WORD.findall(name))) and _all_different(numbers):
            yield Column(name, "id", "different integers in a column named like an identifier", numbers)
        else:
            yield Column(name, "number", f"{low[i]:.9g} to {high[i]:.9g}{_gaps(missing[i])}", numbers)


def _of_strings(column: pl.Series, other: NDArray[np.bool_], missing: NDArray[np.bool_], file: TableFile) -> Column:
    """A column of strings that are not all numbers."""
    name, text = column.name, column.set(pl.Series(missing), None)
    present = text.drop_nulls()
    levels = present.unique()
    distinct, total = len(levels), len(present)
    gaps = _gaps(len(text) - total)
    if distinct == 1:
        return Column(name, "none", f"the same value in every row ({present[0][:40]!r})", text)
    if date := _date(column, text, file):
        return date
    if distinct > MAX_CODES and other.sum() <= (1 - MOSTLY) * total:
        return Column(name, "mixed", _mixed(name, "numbers", text, other, file), text)
    if distinct * 2 <= total and distinct <= MAX_LEVELS and levels.str.len_bytes().sum() <= MAX_LEVEL_BYTES:
        return Column(name, "category", f"{distinct:,} different values{gaps}", text)
    if present.str.contains(r"\s").sum() * 2 >= total:
        return Column(name, "text", f"{distinct:,} different texts{gaps}", text)
    return Column(name, "id", f"{distinct:,} different values in {total:,} rows, without white space", text)


def _date(column: pl.Series, text: pl.Series, file: TableFile) -> Column | None:
    """A column of strings as dates, if it holds dates."""
    examples = text.drop_nulls()
    forms = sorted({form for example in examples.head(5) if len(example) < 50 for form in date_formats(example)})
    if not forms:
        return None
    read = sorted(((form, dates(column, form)) for form in forms), key=lambda pair: int(pair[1].other.sum()))
    if len(read) > 1 and not read[1][1].other.any():
        why = f"dates such as {examples[0]}, whose day and month are ambiguous; write them as 2024-01-31"
        return Column(column.name, "none", why, text)
    form, values = read[0]
    if not values.other.any():
        return Column(column.name, "date", _span(values), values.numbers, form)
    if values.other.sum() <= (1 - MOSTLY) * len(examples):
        return Column(column.name, "mixed", _mixed(column.name, "dates", text, values.other, file), text)
    return None


def _of_others(column: pl.Series) -> Column:
    """A column that holds neither numbers nor strings."""
    empty = pl.Series(column.name, [None] * len(column), dtype=pl.String)
    if column.null_count() == len(column):
        return Column(column.name, "none", "no value in any row", empty)
    if column.dtype in (pl.Date, pl.Datetime):
        values = dates(column, "%Y-%m-%d")
        if column.n_unique() - (column.null_count() > 0) == 1:
            return Column(column.name, "none", f"the same value in every row ({column.drop_nulls()[0]})", empty)
        return Column(column.name, "date", _span(values), values.numbers, "%Y-%m-%d")
    return Column(column.name, "none", "neither numbers, dates nor text", empty)


def _as_feature(column: Column, why: str) -> Column:
    """An identifier as a feature."""
    kind: Literal["text", "number"] = "text" if isinstance(column.values, pl.Series) else "number"
    return replace(column, kind=kind, why=column.why + why)


def _same(one: Any, other: Any) -> bool:
    """Whether the values of two columns are equal in every row."""
    if isinstance(one, pl.Series) or isinstance(other, pl.Series):
        both = isinstance(one, pl.Series) and isinstance(other, pl.Series)
        return both and one.null_count() < len(one) and bool(one.eq_missing(other).all())
    if one.shape != other.shape or (one.ndim == 1 and one[0] != other[0] and one[0] == one[0]):
        return False  # the first row decides for most columns
    return bool(np.array_equal(one, other, equal_nan=True))


def _mixed(name: str, what: str, text: pl.Series, other: NDArray[np.bool_], file: TableFile) -> str:
    row = int(other.argmax())
    return (
        f"{name} holds {what}, but {str(text[row])[:40]!r} in {file.locate(row)}; correct it, write it as an empty "
        f"value if it is missing, or leave the column out with --ignore {name}"
    )


def _span(values: Values) -> str:
    days = values.numbers[:, 1]
    low, high = (str(np.datetime64(int(np.floor(day)), "D")) for day in (np.nanmin(days), np.nanmax(days)))
    return f"{low} to {high}{_gaps(int(values.missing.sum()))}"


def _all_different(values: NDArray[np.float64]) -> bool:
    finite = values[np.isfinite(values)]
    return bool((finite % 1 == 0).all()) and len(np.unique(finite)) == len(finite)


def _gaps(count: int) -> str:
    return f", {count:,} missing" if count else ""
