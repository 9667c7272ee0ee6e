"""The target: classes or numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnlab.tasks._standardize import MAX_STANDARDIZED
from attnlab.tasks.base import UNSEEN
from attnlab.tasks.tables.values import LARGEST, MAX_CODES, MOSTLY, numbers
from attnlab.utils.errors import UserError

MAX_CLASSES = 20
"""Integers with more different values are regression targets, not classes."""

Locate = Callable[[int], str]
"""Gives the location of a row, counted from 0, in the user's file, for messages."""


@dataclass(frozen=True)
class Target:
    """The targets: ``values`` (rows,) are indices into ``labels``, the classes as in the file, or float64 numbers."""

    name: str
    values: NDArray[Any]
    labels: list[Any] | None
    why: str


def target_gaps(column: pl.Series, decimal: str = ".") -> NDArray[np.bool_]:
    """(rows,), where the target is missing."""
    return numbers([column], decimal).missing[0] if _is_readable(column) else column.is_null().to_numpy()


def read_target(
    column: pl.Series, kind: Literal["class", "number"] | None = None, *, decimal: str = ".", locate: Locate
) -> Target:
    """Classes or numbers: strings, Booleans and integers with at most `MAX_CLASSES` values are classes.

    Raises:
        UserError: for a value that is missing, too large or not a number, with its row; for a column of another type;
            for numbers that are all equal.
    """
    parsed, _, other = _parsed(column, decimal, locate, "leave such rows out (of a table with --missing drop)")
    unique = column.unique().to_list()
    why = f"--target_type {kind}"
    if kind is None:
        kind, why = _kind(column, parsed, other, len(unique), locate)
    if kind == "class":
        labels = _labels(unique)
        if len(labels) < 2:
            raise UserError(f"every row is of one class ({labels[0]}), so there is nothing to learn; two are needed")
        return Target(column.name, _codes(column, labels), labels, f"{len(labels):,} classes: {why}")
    _check_numbers(column, parsed, other, locate)
    low, high = parsed.min(), parsed.max()
    if low == high:
        alike = f"is {float(low)!r} in every row{' as a float64' if len(unique) > 1 else ''}"
        raise UserError(f"{column.name} {alike}, so there is nothing to learn; choose another --target")
    return Target(column.name, parsed, None, f"{low:.9g} to {high:.9g}: {why}")


def encode_target(
    column: pl.Series, encoding: dict[str, Any], *, decimal: str = ".", locate: Locate, gaps: bool = False
) -> Tensor:
    """More targets (rows, 1), encoded as in training: classes, possibly `UNSEEN`, or standardized numbers.

    With ``gaps``, values that are missing or not numbers become `UNSEEN` or NaN; otherwise UserError as `read_target`.
    """
    parsed, missing, other = _parsed(column, decimal, locate, "leave such rows out", gaps=gaps)
    if "labels" in encoding:
        y = np.where(missing, UNSEEN, _codes(column, encoding["labels"]))
    else:
        _check_numbers(column, parsed, other & (not gaps), locate)
        y = standardized_target(parsed, encoding["mean"], encoding["unit"], column.name, locate)
    return torch.from_numpy(y).unsqueeze(1)


def standardized_target(
    values: NDArray[np.float64], mean: float, unit: float, name: str, locate: Locate
) -> NDArray[np.float32]:
    """``(values - mean) / unit``; UserError for a value so far from the mean that its squared error overflows."""
    parsed = (values - mean) / unit
    far = np.abs(parsed) > MAX_STANDARDIZED
    if far.any():
        row = int(far.argmax())
        raise UserError(
            f"{name} is {values[row]:g} in {locate(row)}, {abs(parsed[row]):.0e} times the spread of the training rows "
            "away from their mean; correct it, or leave the row out"
        )
    return parsed.astype(np.float32)


def _is_readable(column: pl.Series) -> bool:
    return column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.String)


def _parsed(
    column: pl.Series, decimal: str, locate: Locate, otherwise: str, *, gaps: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """The column's `Values`; missing values are refused unless ``gaps`` allows them."""
    if not _is_readable(column):
        raise UserError(f"{column.name} holds neither numbers nor strings nor Booleans; choose another --target")
    parsed, missing, other = (rows[0] for rows in numbers([column], decimal))
    if missing.any() and not gaps:
        row = int(missing.argmax())
        value = column[row]
        if isinstance(value, str) and value.strip() and other.any():
            raise UserError(
                f"{column.name} is {value!r} in {locate(row)}, which means a missing value; if it is a class, give "
                f"it another name; otherwise fill it in, or {otherwise}"
            )
        raise UserError(f"{column.name} is missing or not finite in {locate(row)}; fill it in, or {otherwise}")
    return parsed, missing, other


def _kind(
    column: pl.Series, parsed: NDArray[np.float64], other: NDArray[np.bool_], distinct: int, locate: Locate
) -> tuple[Literal["class", "number"], str]:
    """Classes or numbers, and the reason."""
    if column.dtype == pl.Boolean:
        return "class", "Booleans"
    if other.any():
        if distinct > MAX_CODES and other.mean() <= 1 - MOSTLY:
            row = int(other.argmax())
            raise UserError(
                f"{column.name} holds numbers, but {column[row][:40]!r} in {locate(row)}; correct it, or give "
                "--target_type class if these are names"
            )
        return "class", "strings"
    if distinct <= MAX_CLASSES and np.isfinite(parsed).all() and (parsed % 1 == 0).all():
        return "class", f"integers with at most {MAX_CLASSES} different values"
    return "number", f"numbers with {distinct:,} different values"


def _check_numbers(column: pl.Series, parsed: NDArray[np.float64], other: NDArray[np.bool_], locate: Locate) -> None:
    if other.any():
        row = int(other.argmax())
        raise UserError(f"{column.name} is {column[row][:40]!r} in {locate(row)}, which is not a number; correct it")
    large = np.abs(parsed) > LARGEST
    if large.any():
        row = int(large.argmax())
        raise UserError(
            f"{column.name} is {column[row]} in {locate(row)}; a network computes in float32, up to {LARGEST:.2g}: "
            "give the column in a larger unit"
        )


def _labels(unique: list[Any]) -> list[Any]:
    """The classes in order. Strings with equal numbers are different classes: 1, 01 and 001."""
    if not isinstance(unique[0], str):
        return sorted(unique)
    if all(re.fullmatch(r"0|-?[1-9]\d{0,99}", label, re.ASCII) for label in unique):
        return sorted(map(int, unique))  # printed as in the file
    try:
        return sorted(unique, key=lambda label: (float(label), label))
    except ValueError:
        return sorted(unique)


def _codes(column: pl.Series, labels: list[Any]) -> NDArray[np.int64]:
    """(rows,) indices into ``labels``, `UNSEEN` for other values."""
    index = {_key(label): i for i, label in enumerate(labels)}
    unique = column.unique()
    codes = [next((index[key] for key in _keys(value, labels) if key in index), UNSEEN) for value in unique]
    return column.replace_strict(unique, codes, return_dtype=pl.Int64).to_numpy().copy()


def _key(label: Any) -> str:
    """A label as a string, the same in every file format."""
    if isinstance(label, bool):
        return str(label).lower()
    return str(int(label)) if isinstance(label, float) and label % 1 == 0 else str(label)


def _keys(value: Any, labels: list[Any]) -> Iterator[str]:
    """The strings that a value may have among the labels."""
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
