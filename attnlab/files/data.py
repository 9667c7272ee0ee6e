"""Files that the user names: regular files that fit into memory."""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple

from attnlab.utils.errors import UserError

_STREAMS = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
_MARKS = {  # UTF-32 before UTF-16: its mark begins with the other
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r\f\v"))
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


class Encoding(NamedTuple):
    """How a file's bytes are characters: Python's name of the codec, and what to call it where it is not UTF-8."""

    codec: str
    label: str = ""


def detect_encoding(path: Path) -> Encoding:
    """UTF-8, UTF-16 and UTF-32 with a byte order mark, or else Windows-1252, which Latin-1 text reads the same in.

    Raises:
        UserError: for a file that is no text in any of them, with the line.
        OSError: what `open` raises.
    """
    with open_data(path) as file:
        start = file.read(4)
        for label, marks in _MARKS.items():
            if start.startswith(marks):
                return Encoding(label.lower(), label)
        file.seek(0)
        line = _first_wrong_line(path, file)
        if line is None:
            return Encoding("utf-8-sig")
        file.seek(0)
        _check_cp1252(path, file, line, marked=start.startswith(codecs.BOM_UTF8))
        return Encoding("cp1252", "Windows-1252 (Latin-1)")


def _first_wrong_line(path: Path, file: BinaryIO) -> int | None:
    """The first line that is no UTF-8, None where all are; UserError for a NUL byte."""
    decoder, line, wrong = codecs.getincrementaldecoder("utf-8")(), 1, None
    while True:
        chunk = file.read(_CHUNK)
        if 0 in chunk:
            line += chunk.count(b"\n", 0, chunk.index(0))
            raise UserError(f"{path} is binary: line {line:,} holds a NUL byte; give plain text")
        if wrong is None:
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                wrong = line + error.object.count(b"\n", 0, error.start)
        if not chunk:
            return wrong
        line += chunk.count(b"\n")


def _check_cp1252(path: Path, file: BinaryIO, line: int, *, marked: bool) -> None:
    """Refuse what is no Windows-1252 either: five bytes are none, and control characters are in no text.

    A file that is ``marked`` as UTF-8 is nothing else.
    """
    while chunk := file.read(_CHUNK):
        if len(chunk.translate(None, _CONTROLS)) < len(chunk):
            raise UserError(f"{path} is binary: line {line:,} is no UTF-8 text; give plain text")
        if marked or len(chunk.translate(None, b"\x81\x8d\x8f\x90\x9d")) < len(chunk):
            raise UserError(f"line {line:,} of {path} is no UTF-8 text; save it as UTF-8")


def _check_kind(path: Path, mode: int, flag: str) -> None:
    if stat.S_ISDIR(mode):
        raise UserError(f"{flag} {path} is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        kind = _STREAMS.get(stat.S_IFMT(mode), "special file")
        raise UserError(f"{flag} {path} is a {kind}; write its content to a file first")
