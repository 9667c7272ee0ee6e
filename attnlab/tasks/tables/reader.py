"""Reads a table file by its suffix."""

from __future__ import annotations

from pathlib import Path

from attnlab.tasks._options import check_file
from attnlab.tasks.tables.csv_file import read_csv
from attnlab.tasks.tables.file import MalformedError, TableFile
from attnlab.tasks.tables.jsonl_file import read_jsonl
from attnlab.tasks.tables.parquet_file import read_parquet
from attnlab.utils.errors import UserError

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl")
HEADERLESS = (".csv", ".tsv")
"""Files whose columns may have no names."""
_READERS = {".parquet": read_parquet, ".jsonl": read_jsonl}


def read_table(path: Path, *, header: bool = True) -> TableFile:
    """Read a .csv, .tsv, .jsonl or .parquet file; without a ``header``, columns are ``column_1``, ``column_2`` ...

    Raises:
        UserError: for a file that is missing, not regular, empty, binary or malformed (with the line, if there are
            lines), that has no rows, repeated or empty column names, or that needs too much memory.
    """
    check_file(path, "table", SUFFIXES)
    suffix = path.suffix.lower()
    if not header and suffix not in HEADERLESS:
        raise UserError(f"--no_header is for .csv and .tsv files; {path} names its columns, so leave it out")
    try:
        table = _READERS[suffix](path) if suffix in _READERS else read_csv(path, header=header)
    except MalformedError as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from None
    except OSError as error:
        raise UserError(f"--data {path} cannot be read: {error.strerror or error}") from None
    if not len(table.frame):
        raise UserError(f"{path} has no rows below its header; add some")
    return table
