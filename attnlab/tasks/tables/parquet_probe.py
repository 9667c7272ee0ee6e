"""Reads a .parquet file from stdin in a separate process, because polars aborts its process for some damaged files.

A script whose argument is the largest allowed size of the content in bytes. It prints ``begun``, then the size if it is
too large (and exits with `TOO_LARGE`), or the error (`MALFORMED`). It does not import attnlab, to start quickly.
"""

from __future__ import annotations

import io
import sys
from typing import Any

MALFORMED, TOO_LARGE = 3, 4


def probe(content: bytes, most: int) -> int:
    """The exit status for a file's content."""
    import polars as pl

    print("begun", flush=True)
    try:
        rows = int(pl.scan_parquet(io.BytesIO(content)).select(pl.len()).collect().item())
        size = rows * sum(map(_width, pl.read_parquet_schema(io.BytesIO(content)).values()))
        if size <= most:
            _limit_memory(2 * most + 2 * len(content) + 2**30)
            frame = pl.read_parquet(io.BytesIO(content))
            # The file may store a string once for all rows, but each row needs it when it is used.
            size = int(frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String)).estimated_size())
        if size > most:
            print(size)
            return TOO_LARGE
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        print((str(error).splitlines() or [""])[0][:200])
        return MALFORMED
    return 0


def _limit_memory(most: int) -> None:
    """Limit the memory of this process: a list of a billion zeros is a few bytes in a file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _width(dtype: Any) -> int:
    """The minimum size of a value in bytes."""
    import polars as pl

    if dtype == pl.Null or dtype == pl.Boolean:
        return 1
    name = str(dtype)
    return next((bits // 8 for bits in (8, 16, 32, 64, 128) if name.endswith(f"t{bits}")), 16)


if __name__ == "__main__":
    sys.exit(probe(sys.stdin.buffer.read(), int(sys.argv[1])))
