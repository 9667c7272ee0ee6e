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
        if size > most:
            print(size)
            return TOO_LARGE
        pl.read_parquet(io.BytesIO(content))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        print((str(error).splitlines() or [""])[0][:200])
        return MALFORMED
    return 0


def _width(dtype: Any) -> int:
    """The bytes that a value takes at least."""
    import polars as pl

    if dtype == pl.Null or dtype == pl.Boolean:
        return 1
    name = str(dtype)
    return next((bits // 8 for bits in (8, 16, 32, 64, 128) if name.endswith(f"t{bits}")), 16)


if __name__ == "__main__":
    sys.exit(probe(sys.stdin.buffer.read(), int(sys.argv[1])))
