"""What is to be predicted: one of several classes, or a quantity."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from attnlab.tasks._values import LARGEST, MANY, MOSTLY, Values, numbers
from attnlab.tasks.base import UNSEEN
from attnlab.utils.errors import UserError

MOST_CLASSES = 20
"""Whole numbers with more different values than this are quantities, not classes."""
FURTHEST = 1e18
"""The largest standardized magnitude: squares of larger ones overflow in float32."""

Place = Callable[[int], str]
"""Where a row, counted from 0, stands in the user's file."""


@dataclass(frozen=True)
class Target:
    """The answers of all rows.

    Args:
        name: what they are called.
        values: (rows,) indices into ``labels``, or float64 quantities.
        labels: the classes, as they stand in the file; None for quantities.
        why: the reason for the type, as it is shown.
    """

    name: str
    values: NDArray[Any]
    labels: list[Any] | None
    why: str


def target_gaps(column: pl.Series, decimal: str = ".") -> NDArray[np.bool_]:
    """(rows,), where a target has no value."""
    return numbers([column], decimal).missing[0] if _is_readable(column) else column.is_null().to_numpy()


def read_target(
    column: pl.Series, kind: Literal["class", "number"] | None = None, *, decimal: str = ".", place: Place
) -> Target:
    """Classes or quantities: words, truth values and whole numbers of at most `MOST_CLASSES` values are classes.

    Args:
        column: the answers, with their name.
        kind: ``class`` or ``number``, where the user says so.
        decimal: the decimal mark of numbers in strings.
        place: names a row in messages.

    Raises:
        UserError: for a value that is missing, too large or no number, with its row; for a column that holds neither
            numbers nor words nor truth values; for quantities that are all the same.
    """
    values = _complete(column, decimal, place, "leave such rows out (of a table with --missing drop)")
    found, other = values.numbers[0], values.other[0]
    unique = column.unique().to_list()
    why = f"--target_type {kind}"
    if kind is None:
        kind, why = _kind(column, found, other, len(unique), place)
    if kind == "class":
        labels = _labels(unique)
        if len(labels) < 2:
            raise UserError(f"every row is of one class ({labels[0]}), so there is nothing to learn; two are needed")
        return Target(column.name, _codes(column, labels), labels, f"{len(labels):,} classes: {why}")
    _check_quantities(column, found, other, place)
    low, high = found.min(), found.max()
    if low == high:
        alike = f"is {float(low)!r} in every row{' as a float64' if len(unique) > 1 else ''}"
        raise UserError(f"{column.name} {alike}, so there is nothing to learn; choose another --target")
    return Target(column.name, found, None, f"{low:.9g} to {high:.9g}: {why}")


def encode_target(
    column: pl.Series, encoding: dict[str, Any], *, decimal: str = ".", place: Place, gaps: bool = False
) -> NDArray[Any]:
    """More answers (rows,), encoded as in training: classes, `UNSEEN` among them, or standardized quantities.

    Args:
        column: the answers, with their name.
        encoding: that of training.
        decimal: the decimal mark of numbers in strings.
        place: names a row in messages.
        gaps: whether values may be missing, or no numbers where numbers are wanted; they become `UNSEEN` or NaN.

    Raises:
        UserError: as `read_target`.
    """
    if gaps and not _is_readable(column):
        raise UserError(f"{column.name} holds neither numbers nor words nor truth values")
    values = numbers([column], decimal) if gaps else _complete(column, decimal, place, "leave such rows out")
    if "labels" in encoding:
        return np.where(values.missing[0], UNSEEN, _codes(column, encoding["labels"]))
    found = values.numbers[0]
    _check_quantities(column, found, values.other[0] & (not gaps), place)
    return standardized_target(found, encoding["mean"], encoding["unit"], column.name, place)


def standardized_target(
    values: NDArray[np.float64], mean: float, unit: float, name: str, place: Place
) -> NDArray[np.float64]:
    """``(values - mean) / unit``.

    Raises:
        UserError: for a value so far away that its squared error overflows.
    """
    found = (values - mean) / unit
    far = np.abs(found) > FURTHEST
    if far.any():
        row = int(far.argmax())
        raise UserError(
            f"{name} is {values[row]:g} in {place(row)}, {abs(found[row]):.0e} times the spread of the training rows "
            "away from their mean; correct it, or leave the row out"
        )
    return found


def _is_readable(column: pl.Series) -> bool:
    return column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.String)


def _complete(column: pl.Series, decimal: str, place: Place, otherwise: str) -> Values:
    """The column's numbers; refuses gaps, and says what else can be done about them."""
    if not _is_readable(column):
        raise UserError(f"{column.name} holds neither numbers nor words nor truth values; choose another --target")
    values = numbers([column], decimal)
    if values.missing.any():
        row = int(values.missing[0].argmax())
        value = column[row]
        if isinstance(value, str) and value.strip() and values.other.any():
            raise UserError(
                f"{column.name} is {value!r} in {place(row)}, which stands for a missing value; if it is a class, give "
                f"it another name; otherwise fill it in, or {otherwise}"
            )
        raise UserError(f"{column.name} is missing or not finite in {place(row)}; fill it in, or {otherwise}")
    return values


def _kind(
    column: pl.Series, found: NDArray[np.float64], other: NDArray[np.bool_], distinct: int, place: Place
) -> tuple[Literal["class", "number"], str]:
    """Classes or quantities, and why."""
    if column.dtype == pl.Boolean:
        return "class", "truth values"
    if other.any():
        if distinct > MANY and other.mean() <= 1 - MOSTLY:
            row = int(other.argmax())
            raise UserError(
                f"{column.name} holds numbers, but {column[row][:40]!r} in {place(row)}; correct it, or give "
                "--target_type class if these are names"
            )
        return "class", "words"
    if distinct <= MOST_CLASSES and np.isfinite(found).all() and (found % 1 == 0).all():
        return "class", f"whole numbers of at most {MOST_CLASSES} different values"
    return "number", f"numbers of {distinct:,} different values"


def _check_quantities(column: pl.Series, found: NDArray[np.float64], other: NDArray[np.bool_], place: Place) -> None:
    if other.any():
        row = int(other.argmax())
        raise UserError(f"{column.name} is {column[row][:40]!r} in {place(row)}, which is no number; correct it")
    large = np.abs(found) > LARGEST
    if large.any():
        row = int(large.argmax())
        raise UserError(
            f"{column.name} is {column[row]} in {place(row)}; a network computes in float32, up to {LARGEST:.2g}: "
            "give the column in a larger unit"
        )


def _labels(unique: list[Any]) -> list[Any]:
    """The classes in order. Strings stay apart where their numbers are equal: 1, 01 and 001 are three classes."""
    if not isinstance(unique[0], str):
        return sorted(unique)
    if all(re.fullmatch(r"0|-?[1-9]\d{0,99}", label, re.ASCII) for label in unique):
        return sorted(map(int, unique))  # printed just as they came
    try:
        return sorted(unique, key=lambda label: (float(label), label))
    except ValueError:
        return sorted(unique)


def _codes(column: pl.Series, labels: list[Any]) -> NDArray[np.int64]:
    """(rows,) indices into ``labels``, `UNSEEN` for what is not among them."""
    index = {_key(label): i for i, label in enumerate(labels)}
    unique = column.unique()
    codes = [next((index[key] for key in _keys(value, labels) if key in index), UNSEEN) for value in unique.to_list()]
    return column.replace_strict(unique, codes, return_dtype=pl.Int64).to_numpy().copy()


def _key(label: Any) -> str:
    """One text for a label in every file format: true, 1 or a word."""
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) and label % 1 == 0 else str(label)


def _keys(value: Any, labels: list[Any]) -> Iterator[str]:
    """The texts under which a value may be among the labels."""
    yield _key(value)
    if isinstance(value, bool | float):
        yield str(value)
    elif isinstance(value, str) and isinstance(labels[0], bool):
        yield value.lower()
    elif isinstance(value, str) and isinstance(labels[0], float):
        try:
            yield _key(float(value))
        except ValueError:
            return
