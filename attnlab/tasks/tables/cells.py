"""The rows of a table as sequences of cells: a code, and a value if the cell is a number.

Axes: B rows, N cells. A number is a cell with its own code; so is every part of a date, such as its weekday.
A category is a cell with one code per value. A text is one cell per byte, with 256 codes per column; texts come last,
and shorter rows are padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from attnlab.network import Inputs
from attnlab.tasks._baselines import Features
from attnlab.tasks._split import Rows
from attnlab.tasks._standardize import mean_and_std, standardize
from attnlab.tasks.tables.columns import Column
from attnlab.tasks.tables.target import Locate
from attnlab.utils.errors import UserError

MAX_TEXT_BYTES = 256
"""Default limit of the bytes of a text (``--seq_length``)."""

DATE_PARTS = ("days", "month_sin", "month_cos", "weekday_sin", "weekday_cos", "hour_sin", "hour_cos")


class Recorded(BaseModel, strict=True, extra="forbid", allow_inf_nan=False):
    """Part of a run's record; unknown fields are refused."""


class Numbers(Recorded):
    """Number columns, or parts of dates: names, and means and standard deviations over the training rows."""

    names: list[str]
    means: list[float]
    spreads: list[float]

    @model_validator(mode="after")
    def _one_each(self) -> Numbers:
        if not len(self.names) == len(self.means) == len(self.spreads):
            raise ValueError("names, means and spreads must have equal lengths")
        if not all(spread > 0 for spread in self.spreads):
            raise ValueError("spreads must be above 0")
        return self


class Date(Recorded):
    """A column of dates: its format, and the parts that vary."""

    name: str
    form: str
    parts: Numbers


class Category(Recorded):
    """A column of categories, with its values in the order of their codes.

    Code 0 means any other value, and 1 a missing value.
    """

    name: str
    levels: list[str]


class Text(Recorded):
    """A column of texts, and the largest number of bytes that are read."""

    name: str
    bytes: int = Field(ge=1)


class Layout(Recorded):
    """The encoding of rows: the columns in the order of their codes."""

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
        """The names of all columns."""
        return [*self.numbers.names, *(c.name for group in (self.dates, self.categories, self.texts) for c in group)]

    @property
    def inputs(self) -> Inputs:
        """The inputs of the network."""
        numbers = len(self.numbers.names) + sum(len(date.parts.names) for date in self.dates)
        size = numbers + sum(2 + len(category.levels) for category in self.categories) + 256 * len(self.texts)
        return Inputs("cells", size, numbers)

    @property
    def length(self) -> int:
        """The longest row in cells."""
        return self.inputs.numbers + len(self.categories) + sum(text.bytes for text in self.texts)


ColumnValues = dict[str, Any]
"""The values of columns by name, arrays or series as in `Column`."""


def fit(columns: Sequence[Column], train: Rows, seq_length: int | None) -> Layout:
    """The layout of columns, with the statistics of the training rows; ``seq_length`` limits the bytes of each text."""
    of_kind = {kind: [c for c in columns if c.kind == kind] for kind in ("number", "date", "category", "text")}
    matrix = _stacked([column.values[train] for column in of_kind["number"]], len(train))
    dates, categories, texts = [], [], []
    for column in of_kind["date"]:
        parts = date_parts(column.values[train])
        varying = np.fmin.reduce(parts, axis=0) != np.fmax.reduce(parts, axis=0)
        varying[0] = True
        kept = [name for name, varies in zip(DATE_PARTS, varying, strict=True) if varies]
        dates.append(Date(name=column.name, form=column.form, parts=_numbers(kept, parts[:, varying])))
    for column in of_kind["category"]:
        present = column.values[train].drop_nulls()
        levels = sorted(present.filter(present.is_duplicated()).unique())  # a value seen once is an unknown one
        categories.append(Category(name=column.name, levels=levels))
    for column in of_kind["text"]:
        longest = int(column.values.str.len_bytes().max() or 1)
        texts.append(Text(name=column.name, bytes=max(1, min(longest, seq_length or MAX_TEXT_BYTES))))
    numbers = _numbers([column.name for column in of_kind["number"]], matrix)
    return Layout(numbers=numbers, dates=dates, categories=categories, texts=texts)


def _numbers(names: list[str], matrix: NDArray[np.float64]) -> Numbers:
    means, spreads = mean_and_std(matrix)
    return Numbers(names=names, means=means.tolist(), spreads=spreads.tolist())


def encode(layout: Layout, values: ColumnValues, rows: int, locate: Locate) -> tuple[NDArray[np.float32], Rows | None]:
    """``x`` (B, N, 2), a code and a value per cell, and ``lengths`` (B,) where there are texts.

    Raises:
        UserError: for a number too far from the training rows for float32, with its row and column.
    """
    matrix, names, means, spreads = number_matrix(layout, values, rows)

    def refuse(row: int, column: int) -> UserError:
        times = abs(matrix[row, column] - means[column]) / spreads[column]
        return UserError(
            f"{names[column]} is {matrix[row, column]:g} in {locate(row)}, {times:.0e} times the spread of the "
            "training rows away from their mean; correct it, or leave the row out"
        )

    first = matrix.shape[1] + len(layout.categories)
    texts = [_bytes(values[text.name], text.bytes) for text in layout.texts]
    sizes = [np.array(list(map(len, text)), np.int64) for text in texts]
    lengths = first + sum(sizes, np.zeros(rows, np.int64))
    x = np.zeros((rows, int(lengths.max(initial=first)), 2), np.float32)
    x[:, : matrix.shape[1], 0] = np.arange(matrix.shape[1])
    x[:, : matrix.shape[1], 1] = standardize(matrix, means, spreads, refuse)
    code = matrix.shape[1]
    for i, category in enumerate(layout.categories, matrix.shape[1]):
        x[:, i, 0] = code + category_codes(category, values)
        code += 2 + len(category.levels)
    start = np.full(rows, first)
    for text, size in zip(texts, sizes, strict=True):
        for row, (at, letters) in enumerate(zip(start, text, strict=True)):
            x[row, at : at + len(letters), 0] = np.frombuffer(letters, np.uint8).astype(np.float32) + code
        start += size
        code += 256
    return x, lengths if texts else None


def number_matrix(
    layout: Layout, values: ColumnValues, rows: int
) -> tuple[NDArray[np.float64], list[str], NDArray[np.float64], NDArray[np.float64]]:
    """The numbers and parts of dates (B, numbers), NaN where missing; their names, means and standard deviations."""
    columns = [values[name] for name in layout.numbers.names]
    names, means, spreads = list(layout.numbers.names), list(layout.numbers.means), list(layout.numbers.spreads)
    for date in layout.dates:
        parts = date_parts(values[date.name])
        columns += [parts[:, DATE_PARTS.index(part)] for part in date.parts.names]
        names += [f"{date.name} ({part})" for part in date.parts.names]
        means += date.parts.means
        spreads += date.parts.spreads
    return _stacked(columns, rows), names, np.array(means), np.array(spreads)


def cell_labels(layout: Layout, x: NDArray[np.float32]) -> list[str]:
    """The column and the value of each cell (N, 2) of a row, such as ``age=37``; a byte of a text as a character."""
    numbers = [layout.numbers, *(date.parts for date in layout.dates)]
    owners = ["", *(date.name for date in layout.dates)]
    units = [
        (f"{owner} ({name})" if owner else name, mean, spread)
        for owner, part in zip(owners, numbers, strict=True)
        for name, mean, spread in zip(part.names, part.means, part.spreads, strict=True)
    ]
    levels = [
        f"{category.name}={level}"
        for category in layout.categories
        for level in ("(other)", "(missing)", *category.levels)
    ]
    labels = []
    for code, value in x.tolist():
        at = int(code) - len(units)
        if at < 0:
            name, mean, spread = units[int(code)]
            labels.append(f"{name}={value * spread + mean:.4g}")
        elif at < len(levels):
            labels.append(levels[at])
        else:
            byte = (at - len(levels)) % 256
            labels.append(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}")
    return labels


def date_parts(days: NDArray[np.float64]) -> NDArray[np.float64]:
    """`DATE_PARTS` (B, 7) of days since 1970 (B, 2) in UTC and local time; NaN where missing."""
    local = days[:, 1]
    day = np.floor(np.nan_to_num(local))
    month = day.astype(np.int64).astype("datetime64[D]").astype("datetime64[M]").astype(np.int64) % 12
    phases = (month / 12, (day + 3) % 7 / 7, local - np.floor(local))  # 1970-01-01 was a Thursday
    waves = [wave(2 * np.pi * phase) for phase in phases for wave in (np.sin, np.cos)]
    parts = np.stack([days[:, 0], *waves], axis=1)
    parts[np.isnan(days[:, 0])] = np.nan
    return parts


def category_codes(category: Category, values: ColumnValues) -> Rows:
    """(B,) codes: 0 for unknown values, 1 for missing ones, and from 2 on for the levels."""
    text = values[category.name]
    level = text.cast(pl.Enum(category.levels), strict=False).to_physical().cast(pl.Int64)
    codes = (level + 2).fill_null(0).to_numpy().copy()
    codes[text.is_null().to_numpy()] = 1
    return codes


def row_keys(columns: Sequence[Column], seq_length: int | None) -> NDArray[np.float64]:
    """Keys (B, columns) that are equal for equal rows; texts are compared up to the limit of their bytes."""
    keys = []
    for column in columns:
        values = column.values
        if isinstance(values, pl.Series):
            read = values.str.head(seq_length or MAX_TEXT_BYTES) if column.kind == "text" else values
            keys.append(read.rank("dense").cast(pl.Float64).to_numpy())
        else:
            keys.append(values if values.ndim == 1 else values[:, 0])
    matrix = np.column_stack(keys)
    matrix[np.isnan(matrix)] = -np.inf
    return matrix


def baseline_features(layout: Layout, values: ColumnValues, rows: int) -> Features:
    """The features of the baselines: standardized numbers, one-hot categories and the tf-idf of texts."""

    def features(train: Rows, test: Rows) -> tuple[Any, ...]:
        from scipy.sparse import csr_matrix, hstack
        from sklearn.preprocessing import OneHotEncoder

        matrix, _, means, spreads = number_matrix(layout, values, rows)
        blocks = [tuple(np.nan_to_num((matrix[part] - means) / spreads) for part in (train, test))]
        if not layout.categories and not layout.texts:
            return blocks[0]
        if layout.categories:
            codes = np.column_stack([category_codes(category, values) for category in layout.categories])
            encoder = OneHotEncoder(handle_unknown="ignore").fit(codes[train])
            blocks.append((encoder.transform(codes[train]), encoder.transform(codes[test])))
        for text in layout.texts:
            words = values[text.name].fill_null("")
            blocks += _tfidf(words[train].to_list(), words[test].to_list())
        return tuple(hstack(list(map(csr_matrix, part)), format="csr") for part in zip(*blocks, strict=True))

    return features


def _tfidf(train: list[str], test: list[str]) -> list[tuple[Any, Any]]:
    """tf-idf features of words, or of characters if the texts have no white space; none if all are empty."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(text.strip() for text in train):
        return []
    prose = sum(len(text.split()) > 1 for text in train) * 2 >= len(train)
    by_character = {"analyzer": "char", "ngram_range": (1, 3)}
    vectorizer = TfidfVectorizer(**({"token_pattern": r"\S+"} if prose else by_character))
    return [(vectorizer.fit_transform(train), vectorizer.transform(test))]


def _bytes(text: pl.Series, most: int) -> list[bytes]:
    """The first bytes of every text; a zero byte for an empty text."""
    return [word.encode()[:most] or b"\0" for word in text.fill_null("").to_list()]


def _stacked(columns: Sequence[Any], rows: int) -> NDArray[np.float64]:
    return np.column_stack(columns) if columns else np.zeros((rows, 0))
