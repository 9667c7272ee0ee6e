"""Files that the user names: regular files that fit into memory."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path
from typing import BinaryIO

from attnlab.utils.errors import UserError

_STREAMS = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
_MARKS = {  # UTF-32 before UTF-16: its mark begins with the other
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\v"))
"""Control characters that are in no text."""
_UNASSIGNED = b"\x81\x8d\x8f\x90\x9d"
"""Bytes that are no character in Windows-1252."""
_CHUNK = 2**20


def open_data(path: Path, flag: str = "--data") -> BinaryIO:
    """Open a file for reading. A pipe or a device is refused before it is opened, since reading it may never end.

    Raises:
        UserError: for anything but a regular file; ``flag`` is what named it.
        OSError: what `open` raises.
    """
    _check_kind(path, path.stat().st_mode, flag)
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    try:
        _check_kind(path, os.fstat(file.fileno()).st_mode, flag)  # what was opened may be another file by now
    except UserError:
        file.close()
        raise
    return file


def memory_limit() -> int:
    """The bytes that the content of one file may take: a quarter of the physical memory."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return 2**32


def check_size(path: Path, size: int) -> None:
    """Raise UserError for a ``size`` in bytes above `memory_limit`."""
    if size > memory_limit():
        raise UserError(
            f"the content of {path} takes {size:,} bytes of memory, more than a quarter of this machine's "
            f"({memory_limit():,}); give a part of it"
        )


def detect_encoding(path: Path) -> tuple[str, str]:
    """Python's codec of a text file, and what to call it where it is not UTF-8.

    It is UTF-8, UTF-16 or UTF-32 with a byte order mark, or else Windows-1252, which reads Latin-1 text the same.

    Raises:
        UserError: for a file that is no text in any of them, with the line.
        OSError: what `open` raises.
    """
    decoder, line, wrong, binary, unassigned = codecs.getincrementaldecoder("utf-8")(), 1, 0, False, False
    with open_data(path) as file:
        start = file.read(4)
        for label, marks in _MARKS.items():
            if start.startswith(marks):
                return label.lower(), label
        file.seek(0)
        while True:
            chunk = file.read(_CHUNK)
            if 0 in chunk:
                line += chunk.count(b"\n", 0, chunk.index(0))
                raise UserError(f"{path} is binary: line {line:,} holds a NUL byte; give plain text")
            if not wrong:
                try:
                    decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    wrong = line + error.object.count(b"\n", 0, error.start)
            if not chunk:
                break
            line += chunk.count(b"\n")
            binary = binary or len(chunk.translate(None, _CONTROLS)) < len(chunk)
            unassigned = unassigned or len(chunk.translate(None, _UNASSIGNED)) < len(chunk)
    if not wrong:
        return "utf-8-sig", ""
    if binary:
        raise UserError(f"{path} is binary: line {wrong:,} is no UTF-8 text; give plain text")
    if unassigned or start.startswith(codecs.BOM_UTF8):
        raise UserError(f"line {wrong:,} of {path} is no UTF-8 text; save it as UTF-8")
    return "cp1252", "Windows-1252 (Latin-1)"


def _check_kind(path: Path, mode: int, flag: str) -> None:
    if stat.S_ISDIR(mode):
        raise UserError(f"{flag} {path} is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        kind = _STREAMS.get(stat.S_IFMT(mode), "special file")
        raise UserError(f"{flag} {path} is a {kind}; write its content to a file first")
