"""Read a .parquet file from stdin to its end: a process of its own, since polars aborts its process at some damage.

Run as a script with the most bytes that the content may take. It prints ``begun``, then the size where that is larger
(and leaves with `TOO_LARGE`), or what is wrong (`MALFORMED`). It imports nothing of attnlab, so that it starts fast.
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
            # A text that the file holds once, for all of its rows, is one for each of them when it is used.
            size = int(frame.with_columns(pl.col(pl.Categorical, pl.Enum).cast(pl.String)).estimated_size())
        if size > most:
            print(size)
            return TOO_LARGE
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        print((str(error).splitlines() or [""])[0][:200])
        return MALFORMED
    return 0


def _limit_memory(most: int) -> None:
    """End this process where it takes more: a list of a billion zeros is a few bytes in a file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _width(dtype: Any) -> int:
    """The bytes that a value takes at least."""
    import polars as pl

    if dtype == pl.Null or dtype == pl.Boolean:
        return 1
    name = str(dtype)
    return next((bits // 8 for bits in (8, 16, 32, 64, 128) if name.endswith(f"t{bits}")), 16)


if __name__ == "__main__":
    sys.exit(probe(sys.stdin.buffer.read(), int(sys.argv[1])))
