"""The user's own table: a column to predict from a column of text, or from columns of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from attnlab.errors import UserError
from attnlab.network import Inputs
from attnlab.task import Problem, Request, Split, Task
from attnlab.tasks._requests import check_file, takes
from attnlab.tasks._split import listed
from attnlab.tasks._supervised import Features, Rows, standardise, supervised
from attnlab.tasks._table_file import read_table

if TYPE_CHECKING:
    import polars as pl

LONGEST = 256
"""Bytes of a text that are read, without ``--seq_length``."""
PROSE = 20
"""Columns of words as long as this on average are text to read; shorter ones are names and codes."""


class Table(Task):
    """A column to predict (``--target``), from the rest of the row.

    With a column of text, a row is the bytes of that text. Without one, it is a sequence of the numbers, a token a
    column, each standardised by its mean and spread in the training data. Words and truth values, and whole numbers
    of few different values, are classes; other numbers are quantities.
    """

    summary = "a column of your own table, from its text or its numbers"
    suffixes = (".csv", ".tsv", ".parquet", ".jsonl")
    needs_data = True

    def load(self, request: Request) -> Problem:
        """Read the table, choose the columns, split the rows.

        Raises:
            UserError: for a file that is missing or malformed (with the line), a target that is not a column, a value
                that is missing (with the row), one class only.
        """
        takes(request, "table", "data", "target", "seq_length")
        if request.data is None:
            raise UserError(
                "table needs a file of yours: give --data FILE.csv and the column to predict, --target NAME"
            )
        table = inferred(read_table(request.data).frame)
        target = find_target(table, request)
        complete(table, [target], request.data)
        answers = table[target].to_numpy()
        answers = answers.astype(str) if answers.dtype == object else answers
        text, numbers = choose(table.drop(target), request.data)
        read = [text] if text else numbers
        complete(table, read, request.data)
        left = [column for column in table.columns if column not in (*read, target)]
        facts = (f"{request.data}: {len(table):,} rows", *([f"does not read {listed(left)}"] if left else []))
        if text is None:
            return supervised(from_numbers(table, numbers, answers, request, facts), request, name=target)
        words = table[text].to_list()
        return supervised(from_text(words, text, answers, request, facts), request, name=target, features=bags(words))

    def columns(self, path: Path) -> dict[str, str]:
        """The columns of numbers, words or truth values.

        Raises:
            UserError: for a file that is missing or malformed, with the line.
        """
        return {
            column.name: str(column.dtype)
            for column in inferred(read_table(path).frame)
            if is_text(column) or is_number(column)
        }

    def read(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """The columns that the network was trained on; the target need not be there.

        Raises:
            UserError: for a file that does not hold them.
        """
        check_file(path, "table", self.suffixes)
        table = inferred(read_table(path).frame)
        missing = [column for column in encoding["columns"] if column not in table.columns]
        if missing:
            raise UserError(f"{path} lacks the column {listed(missing)}; it has {listed(table.columns)}")
        complete(table, encoding["columns"], path)
        if "text" in encoding:
            column = table[encoding["columns"][0]]
            if not is_text(column):
                raise UserError(f"{column.name} in {path} is no text; the network was trained on text")
            x, lengths = encode(column.to_list(), length)
            return Split(torch.from_numpy(x), torch.empty(0), torch.from_numpy(lengths))
        words = [c for c in encoding["columns"] if not is_number(table[c])]
        if words:
            raise UserError(f"{listed(words)} in {path} holds no numbers; the network was trained on numbers")
        numbers = standardise(values(table, encoding["columns"]), encoding)
        return Split(torch.from_numpy(numbers), torch.empty(0))


def from_numbers(
    table: pl.DataFrame, numbers: list[str], answers: NDArray[Any], request: Request, facts: tuple[str, ...]
) -> Rows:
    """A token a column.

    Raises:
        UserError: when ``seq_length`` is given.
    """
    if request.seq_length is not None:
        raise UserError(f"--seq_length is for text, and {request.data} has none to read; leave it out")
    facts += (f"reads {len(numbers)} numbers, a token each: {listed(numbers)}",)
    return Rows(values(table, numbers), answers, Inputs("vectors", 1), facts=facts, encoding={"columns": numbers})


def from_text(
    words: Sequence[str], column: str, answers: NDArray[Any], request: Request, facts: tuple[str, ...]
) -> Rows:
    """A token a byte."""
    longest = LONGEST if request.seq_length is None else request.seq_length
    facts += (f"reads the text of {column}, byte by byte",)
    cut = sum(len(word.encode()) > longest for word in words)
    if cut:
        facts += (f"of {cut:,} texts only the first {longest} bytes are read; --seq_length reads more",)
    x, lengths = encode(words, longest)
    return Rows(x, answers, Inputs("tokens", 256), lengths, facts, {"columns": [column], "text": True})


def values(table: pl.DataFrame, numbers: list[str]) -> NDArray[np.float32]:
    """The columns of numbers as sequences (B, columns, 1)."""
    return table.select(numbers).to_numpy().astype(np.float32)[:, :, None]


def inferred(frame: pl.DataFrame) -> pl.DataFrame:
    """Text columns that hold numbers alone, as numbers."""
    import polars as pl

    for name, dtype in frame.schema.items():
        for kind in (pl.Int64, pl.Float64) if dtype == pl.String else ():
            cast = frame[name].cast(kind, strict=False)
            if cast.null_count() == frame[name].null_count():
                frame = frame.with_columns(cast)
                break
    return frame


def find_target(table: pl.DataFrame, request: Request) -> str:
    """The column to predict.

    Raises:
        UserError: when none is given, or it is not there; lists those that are.
    """
    have = listed(table.columns, 20)
    if request.target is None:
        raise UserError(f"which column of {request.data} shall be predicted? give --target; there are {have}")
    if request.target not in table.columns:
        raise UserError(f"{request.data} has no column {request.target}; --target must be one of {have}")
    column = table[request.target]
    if not (is_text(column) or is_number(column)):
        raise UserError(f"{request.target} holds {column.dtype}; expected numbers, words or truth values to predict")
    return request.target


def choose(table: pl.DataFrame, path: Path) -> tuple[str | None, list[str]]:
    """The column of text to read, or the columns of numbers.

    The text is the column of the longest words, where these are prose, or where there are no numbers.

    Raises:
        UserError: when there is neither.
    """
    numbers = [c.name for c in table if is_number(c)]
    sizes = {c.name: c.str.len_bytes().fill_null(0).sum() / len(c) for c in table if is_text(c)}
    text = max(sizes, key=lambda name: sizes[name], default=None)
    if text is not None and (sizes[text] >= PROSE or not numbers):
        return text, []
    if not numbers:
        raise UserError(
            f"{path} has no other column of text or numbers to predict from; it has {listed(table.columns)}"
        )
    return None, numbers


def complete(table: pl.DataFrame, columns: Sequence[str], path: Path) -> None:
    """Refuse gaps.

    Raises:
        UserError: for a value that is missing, NaN or infinite, with its row.
    """
    for name in columns:
        column = table[name]
        gaps = column.is_null()
        if is_text(column):
            gaps |= column.str.len_bytes() == 0
        elif column.dtype.is_float():
            gaps |= ~column.is_finite()
        if gaps.any():
            row = int(gaps.fill_null(True).arg_max() or 0) + 1
            line = f" (line {row + 1})" if path.suffix.lower() == ".csv" else ""
            raise UserError(f"{name} is missing or not finite in row {row} of {path}{line}; fill it, or drop the row")


def is_text(column: pl.Series) -> bool:
    """Whether a column holds words."""
    import polars as pl

    return column.dtype in (pl.String, pl.Categorical, pl.Enum)


def is_number(column: pl.Series) -> bool:
    """Whether a column holds numbers or truth values."""
    import polars as pl

    return column.dtype.is_numeric() or column.dtype == pl.Boolean


def encode(words: Sequence[str], longest: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first ``longest`` UTF-8 bytes of every text (B, N), zeros behind them; and how many these are (B,)."""
    texts = [word.encode()[:longest] for word in words]
    lengths = np.array([len(text) for text in texts])
    x = np.zeros((len(texts), int(lengths.max())), np.int64)
    for row, text in zip(x, texts, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    return x, lengths


def bags(words: Sequence[str]) -> Features:
    """What the baselines see of a text: which words stand in it, weighted by how rare they are."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    def features(train: NDArray[np.int64], test: NDArray[np.int64]) -> tuple[Any, ...]:
        vectorizer = TfidfVectorizer(token_pattern=r"\S+")
        return vectorizer.fit_transform([words[i] for i in train]), vectorizer.transform([words[i] for i in test])

    return features
