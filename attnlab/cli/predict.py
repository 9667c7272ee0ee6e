"""Predict on new data with a trained network."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.utils.errors import UserError

if TYPE_CHECKING:
    import polars as pl

FORMATS = (".csv", ".parquet", ".jsonl")
_CSV = ("Binary", "Duration", "List", "Array", "Struct")
"""Parts of the names of column types that polars cannot write to a CSV file."""
_JSON = ("Binary", "Duration")
"""The same for JSON lines."""


@dataclass
class Options:
    """What to predict on."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The folder of a run, or a file written by --save_path."""
    data: Annotated[str, arg(metavar="FILE")]
    """The new data, in the format of the training data; or .npz with x."""
    output: Annotated[str | None, arg(metavar="STR")] = None
    """Write to this file instead of printing: .csv, .parquet or .jsonl."""
    overwrite: bool = False
    """Replace the file in --output."""
    keep_columns: bool = False
    """Also write the columns of the table, before the predictions."""
    device: str = "auto"
    """The device to compute on."""


def run(options: Options) -> int:
    """Print one CSV row per example; if the data contain the targets, the metrics go to standard error."""
    output, data = None if options.output is None else Path(options.output), Path(options.data)
    if output is not None and output.suffix not in FORMATS:
        raise UserError(f"--output {output} must end in .csv, .parquet or .jsonl")
    if not data.is_file():
        raise UserError(f"--data {data} does not exist")
    from attnlab.tasks.metrics import METRICS
    from attnlab.tasks.table import Table
    from attnlab.training.checkpoint import check_output
    from attnlab.training.inference import predict_file
    from attnlab.training.report import number

    if output is not None:
        check_output(output, inputs=[data, Path(options.run)], overwrite=options.overwrite)
    if options.keep_columns and data.suffix.lower() not in Table.suffixes:
        raise UserError(f"--keep_columns needs a table ({' '.join(Table.suffixes)}), not {data}; leave it out")
    predictions = predict_file(Path(options.run), data, options.device)
    frame = _frame(predictions.columns)
    if output is None or output.suffix == ".csv":
        frame = _flat(frame)
    if options.keep_columns:
        frame = _beside(frame, data, header=bool(predictions.encoding.get("header", True)))
    if output is None:
        say(_textual(frame, _CSV).write_csv(), end="")
    else:
        _write(frame, output)
        say(f"wrote {len(frame):,} rows to {output}")
    if predictions.metrics:
        scores = [f"{METRICS[name].short} {number(name, value)}" for name, value in predictions.metrics.items()]
        say(f"on the {predictions.scored:,} rows with a known target: {', '.join(scores)}", file=sys.stderr)
    return 0


def _frame(columns: dict[str, list[Any]]) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame(columns, strict=False)


def _beside(frame: pl.DataFrame, table: Path, *, header: bool) -> pl.DataFrame:
    """The columns of the table, then the predictions; ``header`` as in training.

    Raises:
        UserError: if the table has a column of the same name as the predictions.
    """
    import polars as pl

    from attnlab.tasks.tables.reader import HEADERLESS, read_table

    kept = read_table(table, header=header or table.suffix.lower() not in HEADERLESS).frame
    if table.suffix.lower() == ".jsonl":
        kept = kept.with_columns(_nested(column) for column in kept if column.dtype == pl.List)
    if common := [name for name in frame.columns if name in kept.columns]:
        raise UserError(f"{table} already has a column {common[0]}; rename it, or leave out --keep_columns")
    return pl.concat([kept, frame], how="horizontal")


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame for CSV: a prediction of several values becomes one field, separated by spaces."""
    import polars as pl

    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List)]
    return frame.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join(" ") for name in lists)


def _nested(column: pl.Series) -> pl.Series:
    """The values of a JSON lines file, which the table holds as lists of one JSON string each.

    They stay JSON strings where one column type cannot hold them, such as objects with different keys.
    """
    import polars as pl

    values = [None if texts is None else json.loads(texts[0]) for texts in column.to_list()]
    try:
        series = pl.Series(column.name, values)
        if series.to_list() == values:
            return series
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):  # no column type holds them all
        pass
    return column.list.first()


def _textual(frame: pl.DataFrame, types: tuple[str, ...]) -> pl.DataFrame:
    """The frame with columns of these types as text: durations in ISO 8601, bytes in hexadecimal, others as JSON."""
    import polars as pl

    def plain(value: Any) -> str:
        return value.hex() if isinstance(value, bytes) else str(value)

    def text(column: pl.Series) -> pl.Series:
        if column.dtype == pl.Duration:
            return column.dt.to_string("iso")
        if column.dtype == pl.Binary:
            return column.bin.encode("hex")
        values = (None if v is None else json.dumps(v, ensure_ascii=False, default=plain) for v in column.to_list())
        return pl.Series(column.name, list(values), dtype=pl.String)

    return frame.with_columns(text(column) for column in frame if any(name in str(column.dtype) for name in types))


def _write(frame: pl.DataFrame, output: Path) -> None:
    from attnlab.files.atomic import atomically

    with atomically(output, follow=True) as temporary:
        if output.suffix == ".csv":
            _textual(frame, _CSV).write_csv(temporary)
        elif output.suffix == ".parquet":
            _typed(frame).write_parquet(temporary)
        else:
            _textual(_typed(frame), _JSON).write_ndjson(temporary)


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with numeric types for text columns in which every value is a plain number, as in a CSV file."""
    import polars as pl

    def typed(column: pl.Series) -> pl.Series:
        for kind in (pl.Int64, pl.Float64):
            numbers = column.cast(kind, strict=False)
            digits = column.str.extract(r"^-?[0.]*([0-9.]*)").str.count_matches("[0-9]")
            same = numbers.cast(pl.String) == column if kind == pl.Int64 else numbers.is_finite() & (digits <= 17)
            if same.sum() == column.len() - column.null_count() > 0 and not column.str.contains(r"^-?0\d|^\+").any():
                return numbers
        return column

    texts = [name for name, kind in frame.schema.items() if kind == pl.String and name != "prediction"]
    return frame.with_columns(typed(frame[name]) for name in texts)
