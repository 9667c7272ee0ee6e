"""Columns as float64: numbers, and dates in days. All rows are read, never a prefix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

MISSING = ("", "na", "n/a", "nan", "null", "none")
"""Strings for a missing value, in any case, with or without surrounding white space."""
UNKNOWN = ("?", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity")
"""Strings for a missing value only among numbers and dates."""
LARGEST = float(np.finfo(np.float32).max)
"""The largest magnitude in float32."""
MAX_CODES = 20
"""A column of more different values is not a set of codes."""
MOSTLY = 0.9
"""If this fraction of a column is numbers or dates, other values are errors in the data."""

_THOUSANDS = {
    mark: rf"[1-9]\d{{0,2}}(?:{group}\d{{3}})+(?:{point}\d*)?"
    for mark, group, point in ((".", ",", r"\."), (",", r"\.", ","))
}
"""Numbers with thousands separators, by the decimal mark."""
UNITS = "%$€£¥"
"""Units that may precede or follow all numbers of a column."""
_DIGITS_AND_UNITS = rf"^[+-]?\s?[{UNITS}]?\s?[\d.,]+\s?[{UNITS}]?$"

_YEAR_FIRST = r"\d{4}{0}\d{1,2}{0}\d{1,2}"
_YEAR_LAST = r"\d{1,2}{0}\d{1,2}{0}\d{4}"
DATES = {
    "%Y-%m-%d": _YEAR_FIRST.replace("{0}", "-"),
    "%Y/%m/%d": _YEAR_FIRST.replace("{0}", "/"),
    "%Y.%m.%d": _YEAR_FIRST.replace("{0}", r"\."),
    "%d.%m.%Y": _YEAR_LAST.replace("{0}", r"\."),
    "%d/%m/%Y": _YEAR_LAST.replace("{0}", "/"),
    "%m/%d/%Y": _YEAR_LAST.replace("{0}", "/"),
    "%d %b %Y": r"\d{1,2} [A-Za-z]{3} \d{4}",
    "%d %B %Y": r"\d{1,2} [A-Za-z]{4,9} \d{4}",
    "%b %d, %Y": r"[A-Za-z]{3} \d{1,2}, \d{4}",
    "%B %d, %Y": r"[A-Za-z]{4,9} \d{1,2}, \d{4}",
}
"""The supported date formats with their patterns; a time and a zone may follow."""
_TIME = r"(?:[T ]+(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?\s*(Z|UTC|[+-]\d{2}:?\d{2})?)?"


class Values(NamedTuple):
    """The values of columns."""

    numbers: NDArray[np.float64]
    """NaN where there is no number; infinite where it is too large for float64."""
    missing: NDArray[np.bool_]
    other: NDArray[np.bool_]
    """Where a value is neither missing nor a number."""


def is_missing(text: pl.Series) -> pl.Series:
    """Where a column of strings has no value; the result has no nulls."""
    return text.str.strip_chars().str.to_lowercase().is_in(MISSING).fill_null(True)


def words(column: pl.Series) -> pl.Series:
    """A column as strings, null where a value is missing."""
    text = column.cast(pl.String)
    return text.set(is_missing(text), None)


def numbers(columns: Sequence[pl.Series], decimal: str = ".") -> Values:
    """Columns as numbers, each (columns, rows).

    The columns are all strings, or all numbers, Booleans or durations. `UNKNOWN` is missing if every other value of its
    column is a number. Numbers that are not finite are missing, except strings such as 1e999. Numbers may have
    thousands separators, and all numbers of a column may have the same unit out of % $ € £ ¥.
    """
    rows = len(columns[0])
    joined = pl.concat(columns, rechunk=True)
    if joined.dtype != pl.String:
        parsed = as_float(joined).reshape(len(columns), rows)
        infinite = ~np.isfinite(parsed)
        parsed[infinite] = np.nan
        return Values(parsed, infinite, np.zeros_like(infinite))
    text = joined.str.strip_chars()
    low = text.str.to_lowercase()
    missing, unknown = (
        low.is_in(which).fill_null(which is MISSING).to_numpy().reshape(len(columns), rows)
        for which in (MISSING, UNKNOWN)
    )
    parsed = as_float(text.str.replace(",", ".", literal=True) if decimal == "," else text).reshape(len(columns), rows)
    parsed[missing | unknown] = np.nan
    points = np.zeros_like(missing)  # where a point is not the decimal mark
    if decimal == ",":
        points = text.str.contains(".", literal=True).fill_null(False).to_numpy().reshape(parsed.shape)
    unread = points | (np.isnan(parsed) & ~missing & ~unknown)
    unread[unread] = text.filter(pl.Series(unread.ravel())).str.contains(_DIGITS_AND_UNITS).to_numpy()
    for i in np.flatnonzero(unread.any(axis=1)).tolist():
        read = _formatted_numbers(text.slice(i * rows, rows), decimal)
        if not (points[i] & np.isnan(read)).any():
            parsed[i] = np.where(points[i] | np.isnan(parsed[i]), read, parsed[i])
    other = ~(missing | unknown) & np.isnan(parsed)
    numeric = ~other.any(axis=1) & ~np.isnan(parsed).all(axis=1)
    among_numbers = unknown & numeric[:, None]
    return Values(parsed, missing | among_numbers, other | (unknown & ~among_numbers))


def _formatted_numbers(text: pl.Series, decimal: str) -> NDArray[np.float64]:
    """Numbers with thousands separators or a unit such as % or $, and NaN elsewhere; all NaN if the units differ."""
    unit, plain = f"([{UNITS}]?)", rf"\d+(?:\{decimal}\d*)?|\{decimal}\d+"
    parts = text.str.extract_groups(rf"^([+-]?)\s?{unit}\s?(?:({_THOUSANDS[decimal]})|({plain}))\s?{unit}$")
    sign, before, thousands, digits, after = parts.struct.unnest().get_columns()
    valid = thousands.is_not_null() | digits.is_not_null()
    if (before + after).filter(valid).n_unique() > 1:
        return np.full(len(text), np.nan)
    group, point = (",", ".") if decimal == "." else (".", ",")
    whole = thousands.str.replace_all(group, "", literal=True)
    return as_float((sign + whole.fill_null(digits)).str.replace(point, ".", literal=True))


def as_float(column: pl.Series) -> NDArray[np.float64]:
    """A column as a float64 copy, NaN where the conversion fails."""
    if column.dtype == pl.Duration:
        column = column.cast(pl.Duration("us"))
    if column.dtype.is_temporal():
        column = column.to_physical()
    return np.array(column.cast(pl.Float64, strict=False).to_numpy(), np.float64)


def dates(column: pl.Series, form: str) -> Values:
    """A column of strings, dates or date-times as days since 1970, (rows, 2): in UTC and in local time.

    ``form`` is the format of strings, one of `DATES`.
    """
    if column.dtype != pl.String:
        if column.dtype == pl.Date:
            both = [as_float(column)] * 2
        else:
            column = column.dt.cast_time_unit("us")
            both = [as_float(c) / 86_400e6 for c in (column, column.dt.replace_time_zone(None))]
        return Values(np.stack(both, axis=1), np.isnan(both[0]), np.zeros(len(column), bool))
    text = column.str.strip_chars()
    parts = text.str.extract_groups(f"^({DATES[form]}){_TIME}$").struct.unnest().get_columns()
    day = as_float(parts[0].str.to_date(form, strict=False))
    hour, minute, second = (np.nan_to_num(as_float(part)) for part in parts[1:4])
    day[(hour > 23) | (minute > 59) | (second >= 61)] = np.nan
    clock = day + (hour * 3600 + minute * 60 + second) / 86_400
    zone = parts[4].str.extract_groups(r"^([+-])(\d{2}):?(\d{2})$").struct.unnest().get_columns()
    ahead = np.nan_to_num(as_float(zone[1])) / 24 + np.nan_to_num(as_float(zone[2])) / 1440
    days = clock - np.where((zone[0] == "-").fill_null(False).to_numpy(), -ahead, ahead)
    missing = (is_missing(column) | text.str.to_lowercase().is_in(UNKNOWN).fill_null(True)).to_numpy()
    return Values(np.stack([days, clock], axis=1), missing, ~missing & np.isnan(days))


def date_formats(example: str) -> list[str]:
    """The formats that match a value."""
    return [form for form, pattern in DATES.items() if re.fullmatch(pattern + _TIME, example.strip())]


def missing_rows(values: NDArray[np.float64] | pl.Series) -> NDArray[np.bool_]:
    """(rows,), where a column has no value."""
    if isinstance(values, pl.Series):
        return values.is_null().to_numpy()
    return np.isnan(values if values.ndim == 1 else values[:, 0])
