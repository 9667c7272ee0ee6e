"""The user's own table: one column is predicted from the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError, model_validator
from torch import Tensor

from attnlab.network import Inputs
from attnlab.tasks._options import check_options
from attnlab.tasks._split import Rows, check_count, listed
from attnlab.tasks._supervised import Encoded, supervised
from attnlab.tasks.base import ColumnUse, Split, Task, TaskConfig, TaskData
from attnlab.tasks.tables.cells import ColumnValues, Layout, baseline_features, cell_labels, encode, fit, row_keys
from attnlab.tasks.tables.columns import Column, choose, read_columns
from attnlab.tasks.tables.file import TableFile
from attnlab.tasks.tables.new_rows import column_values, refuse_gaps, refuse_large
from attnlab.tasks.tables.reader import HEADERLESS, read_table
from attnlab.tasks.tables.target import MAX_CLASSES, Target, encode_target, read_target, target_gaps
from attnlab.utils.errors import UserError, nearest

KINDS = {"none": "one value", "mixed": "numbers and text"}
"""Displayed names of unusable kinds of columns."""


class Encoding(BaseModel, strict=True, allow_inf_nan=False):
    """The encoding of a table in the record of a run: all that is needed to read more rows and to name the classes."""

    target: str
    labels: list[bool | int | float | str] | None = None
    mean: float = 0.0
    unit: float = 1.0
    missing: Literal["mean", "error", "drop"]
    header: bool = True
    columns: Layout

    @model_validator(mode="after")
    def _labels_differ(self) -> Encoding:
        names = list(map(str, self.labels or ()))
        if len(set(names)) < len(names):
            raise ValueError("a label occurs twice")
        return self


class Table(Task):
    """A column to predict (``--target``) from the rest of the row.

    A row is a sequence of cells. A number is one cell, standardized by the training rows; a category is one cell; a
    date is a few numbers; a text is one cell per byte. Identifiers are left out. The use of each column and its reason
    are printed before training. Strings, Booleans and integers with few different values are classes; other targets
    are regressed.
    """

    summary = "a column of your own table, from its numbers, categories, dates and texts"
    suffixes = (".csv", ".tsv", ".parquet", ".jsonl")
    needs_data = True

    def load(self, config: TaskConfig) -> TaskData:
        """Read the table, decide the kinds of its columns, split the rows and encode them."""
        check_options(
            config, "table", "data", "target", "seq_length", "target_type", "features", "ignore", "missing", "header"
        )
        if config.data is None:
            raise UserError("table needs your own file: give --data FILE.csv and the column to predict, --target NAME")
        file = read_table(config.data, header=config.header)
        name = find_target(file, config)
        summary_lines = (f"{config.data}: {len(file.frame):,} rows", *file.summary_lines)
        targets, rows = file.frame[name], np.arange(len(file.frame))
        check_count(len(rows))
        if config.missing != "drop":
            read_target(targets, config.target_type, decimal=file.decimal, locate=file.locate)
        columns, uses = choose(read_columns(file), name, config)
        if config.missing == "drop":
            rows, fact = complete_rows(columns, target_gaps(targets, file.decimal), config)
            targets, columns = targets[rows], [replace(column, values=column.values[rows]) for column in columns]
            summary_lines += (fact,)

        def locate(row: int) -> str:
            return file.locate(int(rows[row]))

        values = {column.name: column.values for column in columns}
        if config.missing == "error":
            refuse_gaps(values, locate, "and --missing error was given")
        refuse_large(values, locate)
        target = read_target(targets, config.target_type, decimal=file.decimal, locate=locate)
        if config.seq_length is not None and not any(column.kind == "text" for column in columns):
            raise UserError(f"--seq_length is for text, but {config.data} has none; leave it out")

        def encoded(train: Rows) -> Encoded:
            layout = fit(columns, train, config.seq_length)
            x, lengths = encode(layout, values, len(rows), locate)
            return Encoded(
                x,
                layout.inputs,
                layout.length,
                lengths,
                {"missing": config.missing, "header": config.header, "columns": layout.model_dump()},
                baseline_features(layout, values, len(rows)),
                tuple(cut_texts(layout, values)),
            )

        if leaking := leaking_columns(columns, target):
            summary_lines += (
                f"each value of {listed(leaking)} occurs with one class of {name} only, so it may leak the target; "
                "leave such columns out with --ignore if they are not known at prediction time",
            )
        uses[name] = ColumnUse(name, "target", target.why)
        return supervised(
            target,
            row_keys(columns, config.seq_length),
            encoded,
            config,
            locate=locate,
            summary_lines=summary_lines,
            columns=tuple(uses[each] for each in file.frame.columns),
        )

    def read_labelled(self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any]) -> Split:
        """The same, with the targets."""
        return self.read(path, inputs, length, encoding, labelled=True)

    def columns(self, path: Path) -> dict[str, str]:
        """The columns that hold values, each with its kind: number, date, category, text, id or one value."""
        return {c.name: KINDS.get(c.kind, c.kind) for c in read_columns(read_table(path)) if not c.missing.all()}

    def token_labels(self, x: Tensor, inputs: Inputs, encoding: dict[str, Any]) -> list[str]:
        """The column and the value of each cell, such as ``age=37``; the bytes of texts as characters."""
        return cell_labels(Encoding.model_validate(encoding).columns, x.numpy())

    def read(
        self, path: Path, inputs: Inputs, length: int, encoding: dict[str, Any], *, labelled: bool = False
    ) -> Split:
        """More rows. ``y`` is empty if the file lacks the target; `UNSEEN` or NaN marks a missing or invalid value.

        Missing numbers become the mean of the training rows, unless training refused or dropped them. Unknown values
        of a category share one code.

        Raises:
            UserError: for a file that lacks a column, or a value of another kind, with its row; if ``labelled``, also
                for a target that is missing or invalid.
        """
        known = parse_encoding(encoding, inputs, length)
        file = read_table(path, header=known.header or path.suffix.lower() not in HEADERLESS)
        values = column_values(known.columns, file)
        if known.missing != "mean":
            refuse_gaps(values, file.locate, f"and the network was trained with --missing {known.missing}")
        refuse_large(values, file.locate)
        x, lengths = encode(known.columns, values, len(file.frame), file.locate)
        y = torch.empty(0)
        if known.target in file.frame.columns:
            try:
                targets = file.frame[known.target]
                y = encode_target(targets, encoding, decimal=file.decimal, locate=file.locate, gaps=not labelled)
            except UserError:
                if labelled:
                    raise
        elif labelled:
            raise UserError(f"{path} lacks the target {known.target}; it has {listed(file.frame.columns)}")
        return Split(torch.from_numpy(x), y, None if lengths is None else torch.from_numpy(lengths))


def parse_encoding(encoding: dict[str, Any], inputs: Inputs, length: int) -> Encoding:
    """The recorded encoding of a run, checked against its network."""
    try:
        known = Encoding.model_validate(encoding)
        fits = known.columns.inputs == inputs and known.columns.length <= length and known.labels != []
        reason = "it does not match the network"
    except ValidationError as error:
        first = error.errors()[0]
        fits, reason = False, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if not fits:
        raise UserError(
            f"the recorded encoding of the table cannot be used ({reason}): it is damaged, or of another version of "
            "attnlab; train again"
        )
    return known


def find_target(file: TableFile, config: TaskConfig) -> str:
    """The column to predict; UserError with the known columns if it is not given or does not exist."""
    known = file.frame.columns
    if config.target is None:
        raise UserError(f"give the column of {config.data} to predict with --target; choose from {listed(known, 20)}")
    if config.target not in known:
        near = nearest(config.target, known)
        hint = f"did you mean {near}? choose from" if near else "--target must be one of"
        raise UserError(f"{config.data} has no column {config.target}; {hint} {listed(known, 20)}")
    return config.target


def leaking_columns(columns: Sequence[Column], target: Target) -> list[str]:
    """The columns with few values, each of which occurs with a single class, like a copy of the target."""
    leaking: list[str] = []
    for column in columns:
        if target.labels is None or column.kind not in ("category", "number"):
            continue
        values = column.values
        numbers = values if column.kind == "number" else values.rank("dense").fill_null(0).to_numpy()
        known, which = np.unique(numbers, return_inverse=True)
        if len(known) <= MAX_CLASSES and len(np.unique(which * len(target.labels) + target.values)) == len(known):
            leaking.append(column.name)
    return leaking


def complete_rows(columns: Sequence[Column], missing: NDArray[np.bool_], config: TaskConfig) -> tuple[Rows, str]:
    """The rows without a missing value, and a line about the others; UserError if there are none."""
    incomplete = np.logical_or.reduce([missing, *(column.missing for column in columns)])
    if incomplete.all():
        worst = max(columns, key=lambda column: column.missing.sum())
        raise UserError(
            f"every row of {config.data} has a missing value, most of them in {worst.name} ({worst.missing.sum():,} "
            f"rows); leave that column out with --ignore {worst.name}, or fill values in with --missing mean"
        )
    return np.flatnonzero(~incomplete), f"{incomplete.sum():,} rows with a missing value are left out (--missing drop)"


def cut_texts(layout: Layout, values: ColumnValues) -> Iterator[str]:
    """A line for each column whose texts are truncated."""
    for name, limit in ((text.name, text.bytes) for text in layout.texts):
        if cut := int((values[name].str.len_bytes() > limit).sum()):
            yield f"{cut:,} texts in {name} are cut after {limit:,} bytes; --seq_length sets another limit"
