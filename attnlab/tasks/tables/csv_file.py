"""CSV files, also with other separators, decimal commas, other encodings, or no header."""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from attnlab.tasks.tables.columns import blocks
from attnlab.tasks.tables.file import MalformedError, TableFile, check_cells, check_names, open_lines, shown
from attnlab.tasks.tables.values import UNITS

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 1_000, 1_000_000
_CHUNK_CELLS = 8_000_000
"""Fields that are Python strings at once."""

_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*")
_COMMA_NUMBER = re.compile(r"\s*[+-]?\d*,\d+\s*")
_UNIT = rf"\s*[{UNITS}]?\s*"
_COMMAS, _NO_THOUSANDS, _POINTS = (
    rf"^\s*[+-]?{_UNIT}(?:{digits}){_UNIT}$"
    for digits in (
        r"\d*,\d+",
        r"0?,\d+|\d{4,},\d+|\d*,(?:\d{1,2}|\d{4,})|\d{1,3}(?:\.\d{3})+,\d+",
        r"\d*\.\d+",
    )
)


def read_csv(path: Path, *, header: bool) -> TableFile:
    """Read a CSV file; every field is a string, and an empty one is null. MalformedError has the line of the error."""
    with open_lines(path) as (lines, encoding), _any_field_size():
        start, cut = _sample(lines)
        usual = "\t" if path.suffix.lower() == ".tsv" else ","
        separator = find_separator(start, usual, cut=cut)
        body = _records(itertools.chain(start, lines), separator)
        line, first = next(body, (0, None))
        if first is None:
            raise MalformedError("it holds only empty lines")
        if header:
            names = [name.strip(" \t") for name in first]
        else:
            names, body = [f"column_{i}" for i in range(1, len(first) + 1)], itertools.chain([(line, first)], body)
        check_names(names)
        frame, numbers = _read_columns(path, names, body)
    decimal = _decimal(frame, separator)
    if header and looks_like_data(first, frame, decimal):
        line_shown = shown(separator.join(first))
        raise MalformedError(
            f"its first line ({line_shown}) looks like data, not like column names; add a line of names, or give "
            "--no_header"
        )
    summary_lines = [f"fields separated by {SEPARATORS[separator]}"] if separator != usual else []
    summary_lines += ["numbers with decimal commas"] if decimal == "," else []
    summary_lines += [f"read as {encoding}"] if encoding else []
    summary_lines += ["no header, so the columns are named column_1, column_2 ..."] if not header else []
    return TableFile(frame, path, decimal, tuple(summary_lines), np.array(numbers, np.int64))


def _records(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """The records of a file without blank lines, each after its first line, counted from 1."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    line = 1
    try:
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        reason = str(error)
        if "unexpected end of data" in reason:
            reason = "a quotation mark is opened here and never closed"
        raise MalformedError(f"line {line}: {reason}") from None


def _read_columns(
    path: Path, names: Sequence[str], records: Iterable[tuple[int, list[str]]]
) -> tuple[pl.DataFrame, list[int]]:
    """Columns of strings, and the line of each row."""
    width, most = len(names), _CHUNK_CELLS // len(names) * len(names)
    lines: list[int] = []
    frames: list[pl.DataFrame] = []
    fields: list[str] = []  # one flat list: many small ones would slow down the garbage collector

    def add_frame() -> None:
        columns = ([field or None for field in fields[i::width]] for i in range(width))
        frames.append(pl.DataFrame([pl.Series(*pair, dtype=pl.String) for pair in zip(names, columns, strict=True)]))
        fields.clear()

    for line, record in records:
        if len(record) != width:
            if len(record) == 1 and not record[0].strip():
                continue
            count = "1 field" if len(record) == 1 else f"{len(record):,} fields"
            raise MalformedError(f"line {line} has {count}, but the header has {width:,}")
        fields += record
        lines.append(line)
        if len(fields) > most:
            add_frame()
            check_cells(path, len(lines), width)
    add_frame()
    return pl.concat(frames, rechunk=True), lines


def _decimal(frame: pl.DataFrame, separator: str) -> Literal[".", ","]:
    """A comma if numbers have one that is not a thousands separator, and no quoted field has a point."""

    def any_field(pattern: str) -> bool:
        return any(pl.concat(group).str.contains(pattern).any() for group in blocks(frame.get_columns()))

    if any_field(_NO_THOUSANDS):
        return "." if separator == "," and any_field(_POINTS) else ","
    return "," if separator == ";" and any_field(_COMMAS) and not any_field(_POINTS) else "."


def find_separator(start: Sequence[str], usual: str, *, cut: bool = False) -> str:
    """The separator: the character with which every record has as many fields as the header.

    Among several, the one that leaves the fewest other separators inside fields (except decimal commas), and then the
    one with the most fields. If there is none, the one that gives the header the most fields. ``usual`` wins a tie;
    ``cut`` means that the last record may be incomplete.
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


@contextlib.contextmanager
def _any_field_size() -> Iterator[None]:
    """Lift the csv module's limit of 131,072 characters per field."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)
