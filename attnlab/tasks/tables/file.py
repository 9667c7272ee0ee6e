"""The content of the user's table file, before the types of its columns are decided."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from attnlab.files.data import check_size, detect_encoding, open_data

MAX_COLUMNS = 1_000_000


@dataclass(frozen=True)
class TableFile:
    """A table and the properties of its file.

    Args:
        frame: all columns of a .csv are strings, with null for an empty field; other files have typed columns, possibly
            nested. Categories are strings, and decimals are float64.
        path: the file.
        decimal: the decimal mark of numbers in strings.
        summary_lines: unusual properties of the file, such as the separator, one line each.
        lines: (rows,) the first line of each row, counted from 1; None for files without lines.
    """

    frame: pl.DataFrame
    path: Path
    decimal: Literal[".", ","] = "."
    summary_lines: tuple[str, ...] = ()
    lines: NDArray[np.int64] | None = None

    def locate(self, row: int) -> str:
        """The location of a row, counted from 0: ``row 7 of t.csv (line 9)``."""
        line = "" if self.lines is None else f" (line {self.lines[row]:,})"
        return f"row {row + 1:,} of {self.path}{line}"


class MalformedError(Exception):
    """An error in a file, with its line."""


def check_names(names: Sequence[str]) -> None:
    """Raise MalformedError for column names that are empty, repeated, not valid Unicode, or too many."""
    if len(names) > MAX_COLUMNS:
        raise MalformedError(f"it has {len(names):,} columns; at most {MAX_COLUMNS:,} are read")
    seen: set[str] = set()
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise MalformedError(f"column {number:,} has no name; give it one, or remove it")
        if name in seen:
            raise MalformedError(f"two columns are called {shown(name)}; rename one")
        seen.add(name)
        try:
            name.encode()
        except UnicodeEncodeError:
            raise MalformedError(f"the name of column {number:,} is not valid Unicode ({shown(name)})") from None


def shown(text: str, most: int = 60) -> str:
    """A text from the file as part of a one-line message."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= most else f"{text[:most]}..."


def check_cells(path: Path, rows: int, columns: int) -> None:
    """Refuse a table that does not fit into memory, as `check_size`."""
    check_size(path, rows * columns * 16)  # polars stores a short string in 16 bytes


@contextlib.contextmanager
def open_lines(path: Path) -> Iterator[tuple[Iterator[str], str]]:
    """The lines of a text file with their ends, and the name of its encoding if that is not UTF-8."""
    codec, label = detect_encoding(path)
    with open_data(path) as file, io.TextIOWrapper(file, codec, newline="") as text:
        try:
            yield text, label
        except UnicodeError:
            raise MalformedError("its byte order mark does not match its encoding; save it as UTF-8") from None
