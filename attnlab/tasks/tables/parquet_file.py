"""Parquet files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import polars as pl

from attnlab.files.data import check_size, memory_limit, open_data
from attnlab.tasks.tables import parquet_probe
from attnlab.tasks.tables.file import MalformedError, TableFile, check_names

_PLAIN_TYPES = {
    **dict.fromkeys(("Categorical", "Enum", "Int128", "UInt128"), pl.String),
    **{"Decimal": pl.Float64, "Float16": pl.Float32},
}
"""The types in place of categorical, decimal and unusual numeric types, by name: old versions of polars lack some."""


def read_parquet(path: Path) -> TableFile:
    """Read a .parquet file, after a test in another process; MalformedError for a damaged file."""
    try:
        with open_data(path) as file:
            _probe(path, file)
            file.seek(0)
            check_names(list(pl.read_parquet_schema(file)))
            file.seek(0)
            frame = pl.read_parquet(file)
            kinds = {name: str(dtype.base_type()) for name, dtype in frame.schema.items()}
            casts = {name: _PLAIN_TYPES[kind] for name, kind in kinds.items() if kind in _PLAIN_TYPES}
            return TableFile(frame.cast(casts), path)  # type: ignore[arg-type]
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise MalformedError(str(error).split("\n")[0][:200]) from None


def _probe(path: Path, file: BinaryIO) -> None:
    """Check in another process that polars can read a file and that its content fits into memory."""
    command = [sys.executable, "-P", parquet_probe.__file__, str(memory_limit())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"}
    try:
        process = subprocess.run(
            command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, check=False
        )
    except OSError:
        return
    begun, _, output = process.stdout.decode("utf-8", "replace").strip().partition("\n")
    if begun != "begun":
        return  # Python or polars could not be started
    if process.returncode == parquet_probe.TOO_LARGE:
        check_size(path, int(output))
    elif process.returncode:
        raise MalformedError(output or "it is damaged, or its content does not fit into memory")
