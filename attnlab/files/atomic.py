"""Atomic writes, and reading of untrusted files within limits.

Inside the folder of a run symbolic links are never followed: the folder may come from somebody else.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from attnlab.utils.errors import UserError

UNFINISHED = ".attnlab-"
"""The prefix of temporary files; those that a killed process leaves behind are removed later."""
JSON_BYTES = 2**24
"""The largest JSON file that is read, in bytes."""
MAX_JSON_DEPTH = 64
"""The deepest nesting of objects and lists that is read."""
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_NEVER_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@contextlib.contextmanager
def atomically(path: Path, *, follow: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block succeeds.

    With ``follow``, a symbolic link stays, and the file that it points to is replaced. A hard link is always replaced,
    and never written through.

    Raises:
        UserError: if the file cannot be written (disk full, no permission); the earlier file is then unchanged.
    """
    temporary: Path | None = None
    try:
        target = Path(os.path.realpath(path)) if follow else path
        handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix=path.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        temporary = None
    except OSError as error:
        whole = "; the earlier file is whole" if path.exists() else ""
        raise UserError(f"cannot write {path}: {error.strerror or error}{whole}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, follow: bool = False) -> None:
    """Write a text file as `atomically`; UserError also for a lone surrogate, which UTF-8 cannot encode."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"cannot write {path}: {text[error.start]!a} is half a character; mend the names and values in the data"
        ) from None
    with atomically(path, follow=follow) as temporary:
        temporary.write_bytes(data)


def append_line(path: Path, line: str) -> None:
    """Append a line to a regular file; UserError for a symbolic link, a second hard link, or a full disk."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NOFOLLOW | _NEVER_WAIT
    try:
        with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise UserError(f"{path} is a link or no regular file, so it is not written to; replace it by a copy")
            file.write(line.encode() + b"\n")
    except OSError as error:
        if path.is_symlink():
            raise UserError(f"{path} is a link, so it is not written to; replace it by a copy") from None
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def open_regular(path: Path, *, follow: bool = False) -> BinaryIO:
    """Open a regular file for reading, without blocking on a pipe or a device; ``follow`` allows symbolic links.

    Raises:
        UserError: for a file that is missing, a link (without ``follow``), or not regular.
    """
    try:
        handle = os.open(path, os.O_RDONLY | _NEVER_WAIT | (0 if follow else _NOFOLLOW))
    except OSError as error:
        if not follow and path.is_symlink():
            raise UserError(f"{path} is a symbolic link, which is not followed; replace it by a copy") from None
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} is not a regular file; remove it, or restore the file")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, max_bytes: int, *, follow: bool = False) -> bytes:
    """Return the content of a regular file of at most ``max_bytes`` bytes; see `open_regular`."""
    with open_regular(path, follow=follow) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(f"{path} is larger than {max_bytes:,} bytes, the most that is read; restore it")
    return data


def parse_json(text: str | bytes) -> Any:
    """Parse JSON strictly.

    Raises:
        ValueError: for NaN or infinity, a lone surrogate, nesting that is too deep, a repeated key, or invalid JSON.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_once)
        if "\\u" in text:  # the only way to write a surrogate in UTF-8
            json.dumps(value, ensure_ascii=False).encode()
        _check_depth(value)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate)") from None
    return value


def _check_depth(value: Any, most: int = MAX_JSON_DEPTH) -> None:
    """Refuse nesting that would exceed the recursion limit elsewhere."""
    if not most:
        raise ValueError("it is nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, most - 1)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key occurs twice in it")
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
