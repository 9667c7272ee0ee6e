"""A table file of the user's, read without guessing what its columns hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attnlab.errors import UserError
from attnlab.tasks._requests import check_file

if TYPE_CHECKING:
    import polars as pl

SUFFIXES = (".csv", ".parquet", ".jsonl")


@dataclass(frozen=True)
class TableFile:
    """The rows of a file; the columns of a CSV are strings, null where a field is empty."""

    path: Path
    frame: pl.DataFrame
    decimal: Literal[".", ","] = "."
    facts: tuple[str, ...] = ()

    def place(self, row: int) -> str:
        """Where a row, counted from 0, stands in the file."""
        line = f" (line {row + 2})" if self.path.suffix.lower() == ".csv" else ""
        return f"row {row + 1} of {self.path}{line}"


def read_table(path: Path, *, header: bool = True) -> TableFile:
    """A .csv, .jsonl or .parquet file.

    Raises:
        UserError: for a file that is missing, empty or malformed.
    """
    import polars as pl

    check_file(path, "table", SUFFIXES)
    try:
        if path.suffix.lower() == ".csv":
            table = pl.read_csv(path, infer_schema=False, has_header=header)
        elif path.suffix.lower() == ".jsonl":
            table = pl.read_ndjson(path, infer_schema_length=None)
        else:
            table = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}") from None
    if not len(table):
        raise UserError(f"{path} has no rows below its header; add some")
    return TableFile(path, table.cast({pl.Categorical: pl.String, pl.Enum: pl.String, pl.Decimal: pl.Float64}))
