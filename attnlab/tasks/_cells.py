"""The columns of a table as cells: a code for what stands there, and a value where it is a number.

Axes: B rows, N cells. Every number is a cell with a code of its own; so is every part of a date, such as its weekday.
A category is a cell with a code for each of its values. A text is as many cells as it has bytes, 256 codes for each
column of text; texts come last, and what is left of the longest row is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from attnlab.network import Inputs
from attnlab.tasks._baselines import Features
from attnlab.tasks._columns import Column
from attnlab.tasks._split import Rows
from attnlab.tasks._supervised import standardize, standards
from attnlab.tasks._target import Place
from attnlab.utils.errors import UserError

LONGEST = 256
"""Bytes of a text that are read, without ``--seq_length``."""

DATE_PARTS = ("days", "month_sin", "month_cos", "weekday_sin", "weekday_cos", "hour_sin", "hour_cos")


class Recorded(BaseModel, strict=True, extra="forbid", allow_inf_nan=False):
    """What stands in a run's record; anything else is refused."""


class Numbers(Recorded):
    """Number columns, and parts of dates, by their names, means and spreads in the training rows."""

    names: list[str]
    means: list[float]
    spreads: list[float]

    @model_validator(mode="after")
    def _one_each(self) -> Numbers:
        if not len(self.names) == len(self.means) == len(self.spreads):
            raise ValueError("names, means and spreads must be equally many")
        if not all(spread > 0 for spread in self.spreads):
            raise ValueError("spreads must be above 0")
        return self


class Date(Recorded):
    """A column of dates: how they are written, and the parts that vary."""

    name: str
    form: str
    parts: Numbers


class Category(Recorded):
    """A column of categories, and its values in the order of their codes.

    Code 0 is for all others, and 1 for a missing value.
    """

    name: str
    levels: list[str]


class Text(Recorded):
    """A column of texts, and how many bytes of them are read at most."""

    name: str
    bytes: int = Field(ge=1)


class Layout(Recorded):
    """How rows are encoded: the columns in the order of their codes."""

    numbers: Numbers
    dates: list[Date]
    categories: list[Category]
    texts: list[Text]

    @model_validator(mode="after")
    def _each_once(self) -> Layout:
        names = self.names
        if len(set(names)) < len(names):
            raise ValueError("a column occurs twice")
        return self

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        return [*self.numbers.names, *(c.name for group in (self.dates, self.categories, self.texts) for c in group)]

    @property
    def inputs(self) -> Inputs:
        """What the network reads."""
        numbers = len(self.numbers.names) + sum(len(date.parts.names) for date in self.dates)
        size = numbers + sum(2 + len(category.levels) for category in self.categories) + 256 * len(self.texts)
        return Inputs("cells", size, numbers)

    @property
    def length(self) -> int:
        """The longest row in cells."""
        return self.inputs.numbers + len(self.categories) + sum(text.bytes for text in self.texts)


ColumnValues = dict[str, NDArray[np.float64] | pl.Series]
"""The values of columns by name, as in `Column`."""


class Cells(NamedTuple):
    """``x`` (B, N, 2) float32, a code and a value per cell, and ``lengths`` (B,) where there are texts."""

    x: NDArray[np.float32]
    lengths: Rows | None


def fit(columns: Sequence[Column], train: Rows, seq_length: int | None) -> Layout:
    """The layout of columns, with the statistics of the training rows.

    Args:
        columns: those to predict from.
        train: the numbers of the training rows.
        seq_length: bytes of each text that are read; None for `LONGEST`.
    """
    names = [column.name for column in columns if column.kind == "number"]
    matrix = _stacked([column.values[train] for column in columns if column.kind == "number"], len(train))
    means, spreads = standards(matrix)
    dates = []
    for column in columns:
        if column.kind == "date":
            parts = date_parts(_array(column.values)[train])
            varying = np.fmin.reduce(parts, axis=0) != np.fmax.reduce(parts, axis=0)
            varying[0] = True
            mean, spread = standards(parts[:, varying])
            kept = [name for name, varies in zip(DATE_PARTS, varying, strict=True) if varies]
            about = Numbers(names=kept, means=mean.tolist(), spreads=spread.tolist())
            dates.append(Date(name=column.name, form=column.form, parts=about))
    categories = [
        Category(name=column.name, levels=_repeat_kv(_series(column.values)[train]))
        for column in columns
        if column.kind == "category"
    ]
    texts = []
    for column in columns:
        if column.kind == "text":
            longest = int(_series(column.values).str.len_bytes().max() or 1)  # type: ignore[arg-type]
            texts.append(Text(name=column.name, bytes=max(1, min(longest, seq_length or LONGEST))))
    numbers = Numbers(names=names, means=means.tolist(), spreads=spreads.tolist())
    return Layout(numbers=numbers, dates=dates, categories=categories, texts=texts)


def encode(layout: Layout, values: ColumnValues, rows: int, place: Place) -> Cells:
    """Rows as cells.

    Args:
        layout: how.
        values: the columns that it names.
        rows: B.
        place: names a row in messages.

    Raises:
        UserError: for a number too far from the training rows to compute with, with its row and column.
    """
    matrix, names, means, spreads = number_matrix(layout, values, rows)

    def refuse(row: int, column: int) -> UserError:
        times = abs(matrix[row, column] - means[column]) / spreads[column]
        return UserError(
            f"{names[column]} is {matrix[row, column]:g} in {place(row)}, {times:.0e} times the spread of the training "
            "rows away from their mean; correct it, or leave the row out"
        )

    first = matrix.shape[1] + len(layout.categories)
    texts = [_bytes(_series(values[text.name]), text.bytes) for text in layout.texts]
    lengths = first + sum((np.array(list(map(len, text))) for text in texts), np.zeros(rows, np.int64))
    x = np.zeros((rows, int(lengths.max(initial=first)), 2), np.float32)
    x[:, : matrix.shape[1], 0] = np.arange(matrix.shape[1])
    x[:, : matrix.shape[1], 1] = standardize(matrix, means, spreads, refuse)
    code = matrix.shape[1]
    for i, category in enumerate(layout.categories, matrix.shape[1]):
        x[:, i, 0] = code + category_codes(category, values)
        code += 2 + len(category.levels)
    start = np.full(rows, first)
    for text in texts:
        for row, (at, letters) in enumerate(zip(start, text, strict=True)):
            x[row, at : at + len(letters), 0] = np.frombuffer(letters, np.uint8)
            x[row, at : at + len(letters), 0] += code
        start += np.array(list(map(len, text)))
        code += 256
    return Cells(x, lengths if texts else None)


def number_matrix(
    layout: Layout, values: ColumnValues, rows: int
) -> tuple[NDArray[np.float64], list[str], NDArray[np.float64], NDArray[np.float64]]:
    """The numbers and the parts of dates (B, numbers), NaN where missing; their names, means and spreads."""
    columns = [_array(values[name]) for name in layout.numbers.names]
    names, means, spreads = list(layout.numbers.names), list(layout.numbers.means), list(layout.numbers.spreads)
    for date in layout.dates:
        parts = date_parts(_array(values[date.name]))
        columns += [parts[:, DATE_PARTS.index(part)] for part in date.parts.names]
        names += [f"{date.name} ({part})" for part in date.parts.names]
        means += date.parts.means
        spreads += date.parts.spreads
    return _stacked(columns, rows), names, np.array(means), np.array(spreads)


def date_parts(days: NDArray[np.float64]) -> NDArray[np.float64]:
    """`DATE_PARTS` (B, 7) of days since 1970 (B, 2), in UTC and on the wall clock; NaN where missing."""
    wall = days[:, 1]
    day = np.floor(np.nan_to_num(wall))
    month = day.astype(np.int64).astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) % 12
    turns = (month / 12, (day + 3) % 7 / 7, wall - np.floor(wall))  # 1970-01-01 was a Thursday
    waves = [wave(2 * np.pi * turn) for turn in turns for wave in (np.sin, np.cos)]
    parts = np.stack([days[:, 0], *waves], axis=1)
    parts[np.isnan(days[:, 0])] = np.nan
    return parts


def category_codes(category: Category, values: ColumnValues) -> Rows:
    """(B,): 0 for values that are not among the levels, 1 for missing ones, 2 and up for the levels."""
    text = _series(values[category.name])
    level = text.cast(pl.Enum(category.levels), strict=False).to_physical().cast(pl.Int64)
    codes = (level + 2).fill_null(0).to_numpy().copy()
    codes[text.is_null().to_numpy()] = 1
    return codes


def row_keys(columns: Sequence[Column], seq_length: int | None) -> NDArray[np.float64]:
    """Numbers (B, columns) that are equal where two rows are: of a text, what is read of it counts."""
    keys = []
    for column in columns:
        values = column.values
        if isinstance(values, pl.Series):
            read = values.str.head(seq_length or LONGEST) if column.kind == "text" else values
            keys.append(read.rank("dense").cast(pl.Float64).to_numpy())
        else:
            keys.append(values if values.ndim == 1 else values[:, 0])
    found = np.column_stack(keys)
    found[np.isnan(found)] = -np.inf
    return found


def baseline_features(layout: Layout, values: ColumnValues, rows: int) -> Features:
    """What the baselines see: standardized numbers, categories one-hot, and the words of texts weighted by rarity."""

    def features(train: Rows, test: Rows) -> tuple[Any, Any]:
        from scipy.sparse import csr_matrix, hstack
        from sklearn.preprocessing import OneHotEncoder

        matrix, _, means, spreads = number_matrix(layout, values, rows)
        numbers = [np.nan_to_num((matrix[part] - means) / spreads) for part in (train, test)]
        if not layout.categories and not layout.texts:
            return numbers[0], numbers[1]
        both = [[csr_matrix(part)] for part in numbers]
        if layout.categories:
            codes = np.column_stack([category_codes(category, values) for category in layout.categories])
            encoder = OneHotEncoder(handle_unknown="ignore").fit(codes[train])
            for blocks, part in zip(both, (train, test), strict=True):
                blocks.append(encoder.transform(codes[part]))
        for text in layout.texts:
            words = _series(values[text.name]).fill_null("")
            for blocks, found in zip(both, _word_weights(words[train].to_list(), words[test].to_list()), strict=False):
                blocks.append(found)
        joined = tuple(hstack(blocks, format="csr") for blocks in both)
        return joined[0], joined[1]

    return features


def _word_weights(train: list[str], test: list[str]) -> tuple[Any, ...]:
    """Term frequencies by inverse document frequency, of words or, where there is no white space, of characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    prose = sum(len(text.split()) > 1 for text in train) * 2 >= len(train)
    by_character = {"analyzer": "char", "ngram_range": (1, 3)}
    vectorizer = TfidfVectorizer(**({"token_pattern": r"\S+"} if prose else by_character))
    if not any(text.strip() for text in train):
        return ()
    return vectorizer.fit_transform(train), vectorizer.transform(test)


def _bytes(text: pl.Series, most: int) -> list[bytes]:
    """The first bytes of every text; a zero byte for an empty one."""
    return [word.encode()[:most] or b"\0" for word in text.fill_null("").to_list()]


def _repeat_kv(text: pl.Series) -> list[str]:
    """The values that occur more than once, sorted."""
    there = text.drop_nulls()
    return sorted(there.filter(there.is_duplicated()).unique().to_list())


def _stacked(columns: Sequence[Any], rows: int) -> NDArray[np.float64]:
    return np.column_stack(columns) if columns else np.zeros((rows, 0))


def _array(values: NDArray[np.float64] | pl.Series) -> NDArray[np.float64]:
    assert not isinstance(values, pl.Series)
    return values


def _series(values: NDArray[np.float64] | pl.Series) -> pl.Series:
    assert isinstance(values, pl.Series)
    return values
