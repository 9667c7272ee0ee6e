"""The user's table as it stands in its file: nothing of a .csv is inferred, and every row knows its line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from attnlab.files.data import check_size, memory_limit, open_data
from attnlab.tasks import _parquet_probe
from attnlab.tasks._requests import check_file
from attnlab.utils.errors import UserError

if TYPE_CHECKING:
    import polars as pl

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")
NAMELESS = (".csv", ".tsv")
"""Files whose columns may have no names."""
MOST_COLUMNS = 1_000_000


@dataclass(frozen=True)
class TableFile:
    """A table and what was understood of its file.

    Args:
        frame: of a .csv every column is text, with null for an empty field; the others have types, nested ones among
            them. Categories are text, and decimals are float64.
        path: the file.
        decimal: the decimal mark of numbers that are text.
        summary_lines: what was understood beyond the plain case, such as the separator, a line each.
        lines: (rows,) where each row begins, counted from 1; None where the file has no lines.
    """

    frame: pl.DataFrame
    path: Path
    decimal: Literal[".", ","] = "."
    summary_lines: tuple[str, ...] = ()
    lines: NDArray[np.int64] | None = None

    def place(self, row: int) -> str:
        """Where a row, counted from 0, stands: ``row 7 of t.csv (line 9)``."""
        line = "" if self.lines is None else f" (line {self.lines[row]:,})"
        return f"row {row + 1:,} of {self.path}{line}"


def read_table(path: Path, *, header: bool = True) -> TableFile:
    """Read a .csv, .tsv, .jsonl or .parquet file.

    Args:
        path: the file.
        header: whether the first line of a .csv names the columns; without one they are ``column_1``, ``column_2`` ...

    Raises:
        UserError: for a file that is missing, no regular one, empty, binary or malformed (with the line where there
            are lines), that has no rows, two columns of one name or one without a name, or that takes too much memory.
    """
    from attnlab.tasks._csv_file import read_csv
    from attnlab.tasks._jsonl_file import read_jsonl

    check_file(path, "table", SUFFIXES)
    suffix = path.suffix.lower()
    if not header and suffix not in NAMELESS:
        raise UserError(f"--no_header is for .csv and .tsv files; {path} names its columns, so leave it out")
    try:
        if suffix == ".parquet":
            table = read_parquet(path)
        elif suffix == ".jsonl":
            table = read_jsonl(path)
        else:
            table = read_csv(path, header=header)
    except MalformedError as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from None
    except OSError as error:
        raise UserError(f"--data {path} cannot be read: {error.strerror or error}") from None
    if not len(table.frame):
        raise UserError(f"{path} has no rows below its header; add some")
    return table


class MalformedError(Exception):
    """What is wrong in a file, and in which line."""


def check_names(names: Sequence[str]) -> None:
    """Refuse columns that could not be told apart, or not be named.

    Raises:
        MalformedError: for a name that is empty, stands twice, or is no Unicode text; or for too many.
    """
    if len(names) > MOST_COLUMNS:
        raise MalformedError(f"it has {len(names):,} columns; at most {MOST_COLUMNS:,} are read")
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
            raise MalformedError(f"the name of column {number:,} is no Unicode text ({shown(name)})") from None


def shown(text: str, most: int = 60) -> str:
    """A text from the file as a part of a one-line message."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= most else f"{text[:most]}..."


def check_cells(path: Path, rows: int, columns: int) -> None:
    """Refuse a table that would not fit into memory.

    Raises:
        UserError: with the bytes that it would take.
    """
    check_size(path, rows * columns * 16)  # polars' view of a short text takes 16 bytes


def read_parquet(path: Path) -> TableFile:
    """A .parquet file, after another process has read it."""
    import polars as pl

    try:
        with open_data(path) as file:
            _probe(path, file)
            file.seek(0)
            check_names(list(pl.read_parquet_schema(file)))
            file.seek(0)
            frame = pl.read_parquet(file)
            return TableFile(frame.with_columns(*_plainer(frame)), path)
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise MalformedError(str(error).split("\n")[0][:200]) from None


def _probe(path: Path, file: BinaryIO) -> None:
    """Find out in another process whether polars survives a file, and whether what it declares fits into memory."""
    command = [sys.executable, "-P", _parquet_probe.__file__, str(memory_limit())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
    try:
        ended = subprocess.run(
            command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, check=False
        )
    except OSError:
        return
    begun, _, answer = ended.stdout.decode("utf-8", "replace").strip().partition("\n")
    if begun != "begun":
        return  # Python, or polars, could not be started there
    if ended.returncode == _parquet_probe.TOO_LARGE:
        check_size(path, int(answer))
    elif ended.returncode:
        raise MalformedError(answer or "it is damaged, or its content does not fit into memory")


def _plainer(frame: pl.DataFrame) -> list[pl.Expr]:
    """Casts of the columns whose type says more than their values."""
    import polars as pl

    casts = []
    for name, dtype in frame.schema.items():
        if isinstance(dtype, pl.Categorical | pl.Enum):
            casts.append(pl.col(name).cast(pl.String))
        elif isinstance(dtype, pl.Decimal):
            casts.append(pl.col(name).cast(pl.Float64))
        elif str(dtype) in ("Int128", "UInt128"):
            casts.append(pl.col(name).cast(pl.String))
        elif str(dtype) == "Float16":
            casts.append(pl.col(name).cast(pl.Float32))
    return casts
