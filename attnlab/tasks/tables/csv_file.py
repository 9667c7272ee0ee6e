"""CSV files, also with other separators, decimal commas, other encodings, or no header."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from attnlab.files.data import detect_encoding, open_data
from attnlab.tasks.tables.file import MalformedError, TableFile, check_cells, check_names, shown
from attnlab.tasks.tables.values import UNITS

if TYPE_CHECKING:
    import polars as pl

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 1_000, 1_000_000
_CHUNK_CELLS = 8_000_000
"""Fields that are Python strings at once."""

_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*")
_COMMA_NUMBER = re.compile(r"\s*[+-]?\d*,\d+\s*")
_BETWEEN = "\x1f"
"""Joins the fields of a column for a single search."""


def _in_a_field(pattern: str) -> re.Pattern[str]:
    unit = rf"\s*[{UNITS}]?\s*"
    return re.compile(rf"(?<![^{_BETWEEN}])\s*[+-]?{unit}(?:{pattern}){unit}(?![^{_BETWEEN}])")


_COMMAS = _in_a_field(r"\d*,\d+")
_NO_THOUSANDS = _in_a_field(r"0?,\d+|\d{4,},\d+|\d*,(?:\d{1,2}|\d{4,})|\d{1,3}(?:\.\d{3})+,\d+")
_POINTS = _in_a_field(r"\d*\.\d+")


def read_csv(path: Path, *, header: bool) -> TableFile:
    """Read a CSV file; every field is a string, and an empty one is null.

    Raises:
        MalformedError: with the line.
        UserError: for a file that is binary or needs too much memory.
    """
    encoding = detect_encoding(path)
    with (
        open_data(path) as file,
        io.TextIOWrapper(file, encoding.codec, newline="") as text,
        _any_field_size(),
    ):
        lines = _lines(text)
        start, cut = _sample(lines)
        usual = "\t" if path.suffix.lower() == ".tsv" else ","
        separator = find_separator(start, usual, cut=cut)
        records = Records(itertools.chain(start, lines), separator)
        first = next(records, None)
        if first is None:
            raise MalformedError("it holds only empty lines")
        if header:
            names, body = [name.strip(" \t") for name in first], records
            check_names(names)
        else:
            names = [f"column_{i}" for i in range(1, len(first) + 1)]
            check_names(names)
            body = records.again(first)
        reader = _Columns(path, names, separator)
        frame = reader.read(body)
    decimal = reader.decimal
    if header and looks_like_data(first, frame, decimal):
        line = shown(separator.join(first))
        raise MalformedError(
            f"its first line ({line}) looks like data, not like column names; add a line of names, or give --no_header"
        )
    summary_lines = [f"fields separated by {SEPARATORS[separator]}"] if separator != usual else []
    summary_lines += ["numbers with decimal commas"] if decimal == "," else []
    summary_lines += [f"read as {encoding.label}"] if encoding.label else []
    summary_lines += ["no header, so the columns are named column_1, column_2 ..."] if not header else []
    return TableFile(frame, path, decimal, tuple(summary_lines), np.array(reader.lines, np.int64))


class Records:
    """The records of a file without blank lines; ``line`` is the first line of the last record, counted from 1."""

    def __init__(self, lines: Iterable[str], separator: str) -> None:
        self.line = 0
        self._reader = csv.reader(lines, delimiter=separator, strict=True)
        self._again: list[list[str]] = []

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        if self._again:
            return self._again.pop()
        try:
            while True:
                self.line = self._reader.line_num + 1
                record = next(self._reader)
                if record:
                    return record
        except csv.Error as error:
            reason = str(error)
            if "unexpected end of data" in reason:
                reason = "a quotation mark is opened here and never closed"
            raise MalformedError(f"line {self.line}: {reason}") from None

    def again(self, record: list[str]) -> Records:
        """Yield a record again."""
        self._again.append(record)
        return self


class _Columns:
    """Converts records to columns of strings, in chunks."""

    def __init__(self, path: Path, names: Sequence[str], separator: str) -> None:
        self.path, self.names, self.separator = path, names, separator
        self.lines: list[int] = []
        self._commas = self._no_thousands = self._points = False

    @property
    def decimal(self) -> Literal[".", ","]:
        """A comma if numbers have one that is not a thousands separator, and no quoted field has a point."""
        by_semicolon = self.separator == ";" and self._commas and not self._points
        sure = self._no_thousands and not (self.separator == "," and self._points)
        return "," if sure or by_semicolon else "."

    def read(self, records: Records) -> pl.DataFrame:
        import polars as pl

        width, frames = len(self.names), []
        most = _CHUNK_CELLS // width * width
        fields: list[str] = []  # one flat list: many small ones would slow down the garbage collector
        for record in records:
            if len(record) != width:
                if len(record) == 1 and not record[0].strip():
                    continue
                count = "1 field" if len(record) == 1 else f"{len(record):,} fields"
                raise MalformedError(f"line {records.line} has {count}, but the header has {width:,}")
            fields += record
            self.lines.append(records.line)
            if len(fields) > most:
                frames.append(self._frame(fields))
                fields = []
                check_cells(self.path, len(self.lines), width)
        frames.append(self._frame(fields))
        return pl.concat(frames, rechunk=True) if len(frames) > 1 else frames[0]

    def _frame(self, fields: list[str]) -> pl.DataFrame:
        import polars as pl

        series = []
        for i, name in enumerate(self.names):
            column = fields[i :: len(self.names)]
            if not self._no_thousands or self.separator == ",":
                self._detect_decimals(column)
            series.append(pl.Series(name, [field or None for field in column], dtype=pl.String))
        return pl.DataFrame(series)

    def _detect_decimals(self, column: Sequence[str]) -> None:
        joined = _BETWEEN.join(column)
        if "," in joined:
            self._commas = self._commas or _COMMAS.search(joined) is not None
            self._no_thousands = self._no_thousands or _NO_THOUSANDS.search(joined) is not None
        self._points = self._points or ("." in joined and _POINTS.search(joined) is not None)


def find_separator(start: Sequence[str], usual: str, *, cut: bool = False) -> str:
    """The separator: the character with which every record has as many fields as the header.

    Among several, the one that leaves the fewest other separators inside fields (except decimal commas), and then the
    one with the most fields. If there is none, the one that gives the header the most fields.

    Args:
        start: the first lines.
        usual: the separator of the file's suffix; preferred in a tie.
        cut: whether the last record may be incomplete.
    """
    best, score = usual, (False, 0.0, 1)
    for separator in [usual, *(s for s in SEPARATORS if s != usual)]:
        try:
            records = [record for record in csv.reader(start, delimiter=separator) if any(map(str.strip, record))]
        except csv.Error:
            continue
        if cut and len(records) > 2:
            records.pop()
        if not records or len(records[0]) < 2:
            continue
        same = len({len(record) for record in records}) == 1
        candidate = (same, _clean(records, separator) if same else 0.0, len(records[0]))
        if candidate > score:
            best, score = separator, candidate
    return best


def _clean(records: list[list[str]], separator: str) -> float:
    """The fraction of fields without another separator."""
    others = re.compile("[" + "".join(s for s in SEPARATORS if s != separator) + "]")
    fields = [field for record in records for field in record]
    return sum(1 for f in fields if not others.search(f) or _COMMA_NUMBER.fullmatch(f)) / len(fields)


def looks_like_data(first: Sequence[str], frame: pl.DataFrame, decimal: str) -> bool:
    """Whether the first line is data: a number above numbers, or one of the values of every other column.

    0, 1, 2 ... in order are names, as written by pandas.
    """
    if len(first) > 2 and list(first) == [str(i) for i in range(len(first))]:
        return False
    head = frame.head(max(1, min(100, 200_000 // len(first))))
    numeric = False
    for name, column in zip(first, head, strict=True):
        values = [value for value in column if value is not None]
        if not values:
            continue
        if all(_is_number(value, decimal) for value in values):
            if not _is_number(name, decimal):
                return False
            numeric = True
        elif name not in values and not _is_number(name, decimal):
            return False
    return numeric


def _is_number(text: str, decimal: str) -> bool:
    return _NUMBER.fullmatch(text.replace(",", ".", 1) if decimal == "," else text) is not None


def _lines(text: Iterable[str]) -> Iterator[str]:
    try:
        yield from text
    except UnicodeError:
        raise MalformedError("its byte order mark does not match its encoding; save it as UTF-8") from None


def _sample(lines: Iterator[str]) -> tuple[list[str], bool]:
    """The first lines, at least two, and whether there may be more."""
    sample: list[str] = []
    size = 0
    for line in lines:
        sample.append(line)
        size += len(line)
        if len(sample) >= 2 and (len(sample) == _SAMPLE_LINES or size > _SAMPLE_CHARACTERS):
            return sample, True
    return sample, False


class _any_field_size:  # noqa: N801
    """Lifts the csv module's limit of 131,072 characters per field."""

    def __enter__(self) -> None:
        self._before = csv.field_size_limit(2**31 - 1)

    def __exit__(self, *_: Any) -> None:
        csv.field_size_limit(self._before)
