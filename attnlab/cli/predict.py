"""Let a trained network answer for new data."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.cli._parse import parse
from attnlab.utils.errors import UserError

if TYPE_CHECKING:
    import polars as pl

FORMATS = (".csv", ".parquet", ".jsonl")
_CSV = ("Binary", "Duration", "List", "Array", "Struct")
"""Types of columns, by the words in their names, that polars cannot write to a CSV file."""
_JSON = ("Binary", "Duration")
"""Those that it cannot write to a JSON file, or writes otherwise."""


@dataclass
class Options:
    """What to predict on."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run's folder, or a file written by --save_path."""
    data: Annotated[str, arg(metavar="FILE")]
    """The new data, in a file like the one that the network was trained on; or .npz with x."""
    output: Annotated[str | None, arg(metavar="STR")] = None
    """Write here instead of printing: .csv, .parquet or .jsonl."""
    overwrite: bool = False
    """Replace the file in --output where there is one."""
    keep_columns: bool = False
    """Put the columns of a table before the predictions."""
    device: str = "auto"
    """Where to compute."""


def run(arguments: list[str]) -> int:
    """Print a row per example, as CSV; where the data hold the targets, the metrics go to stderr."""
    options = parse(Options, arguments, command="attnlab predict", description="Predict on new data.")
    output, data = None if options.output is None else Path(options.output), Path(options.data)
    if output is not None and output.suffix not in FORMATS:
        raise UserError(f"--output {output} must end in .csv, .parquet or .jsonl")
    if not data.is_file():
        raise UserError(f"--data {data} is not there")
    from attnlab.tasks.metrics import METRICS
    from attnlab.tasks.table import Table
    from attnlab.training.checkpoint import check_output
    from attnlab.training.inference import predict_file
    from attnlab.training.report import number

    if output is not None:
        check_output(output, inputs=[data, Path(options.run)], overwrite=options.overwrite)
    if options.keep_columns and data.suffix.lower() not in Table.suffixes:
        raise UserError(f"--keep_columns is for tables ({' '.join(Table.suffixes)}), and {data} is none; leave it out")
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
        say(f"{len(frame):,} rows in {output}")
    if predictions.metrics:
        scores = [f"{METRICS[name].short} {number(name, value)}" for name, value in predictions.metrics.items()]
        say(f"on the {predictions.scored:,} rows with a known target: {', '.join(scores)}", file=sys.stderr)
    return 0


def _frame(columns: dict[str, list[Any]]) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame(columns, strict=False)


def _beside(frame: pl.DataFrame, table: Path, *, header: bool) -> pl.DataFrame:
    """The predictions, behind the columns of the table that they are for; ``header`` as in training.

    Raises:
        UserError: for a table that has a column of the same name.
    """
    import polars as pl

    from attnlab.tasks.tables.reader import HEADERLESS, read_table

    kept = read_table(table, header=header or table.suffix.lower() not in HEADERLESS).frame
    if table.suffix.lower() == ".jsonl":
        kept = kept.with_columns(_nested(column) for column in kept if column.dtype == pl.List)
    twice = [name for name in frame.columns if name in kept.columns]
    if twice:
        raise UserError(
            f"{table} has a column {twice[0]}, as the predictions have; rename it, or leave --keep_columns out"
        )
    return pl.concat([kept, frame], how="horizontal")


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame that CSV can hold: of an answer with several parts, they stand in one field."""
    import polars as pl

    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List)]
    return frame.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join(" ") for name in lists)


def _nested(column: pl.Series) -> pl.Series:
    """The values of a JSON lines file that the table holds as lists of one JSON text each.

    They stay JSON texts where a column cannot hold them as they are, such as objects of different keys.
    """
    import polars as pl

    values = [None if texts is None else json.loads(texts[0]) for texts in column.to_list()]
    try:
        found = pl.Series(column.name, values)
        if found.to_list() == values:
            return found
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):  # no type holds them all
        pass
    return column.list.first()


def _textual(frame: pl.DataFrame, types: tuple[str, ...]) -> pl.DataFrame:
    """A frame whose columns of some types are text: durations in ISO 8601, bytes in hexadecimal, the rest as JSON."""
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
    """A frame whose columns of text become numbers where every value is a plain number, as those of a CSV file are."""
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
