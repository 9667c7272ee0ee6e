"""Predict on new data with a trained network."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.utils.errors import UserError


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
    if output is not None and output.suffix not in (".csv", ".parquet", ".jsonl"):
        raise UserError(f"--output {output} must end in .csv, .parquet or .jsonl")
    if not data.is_file():
        raise UserError(f"--data {data} does not exist")
    from attnlab.cli._predictions import as_frame, as_text, beside, write
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
    frame = as_frame(predictions.columns, flat=output is None or output.suffix == ".csv")
    if options.keep_columns:
        frame = beside(frame, data, header=bool(predictions.encoding.get("header", True)))
    if output is None:
        say(as_text(frame).write_csv(), end="")
    else:
        write(frame, output)
        say(f"wrote {len(frame):,} rows to {output}")
    if predictions.metrics:
        scores = [f"{METRICS[name].short} {number(name, value)}" for name, value in predictions.metrics.items()]
        say(f"on the {predictions.scored:,} rows with a known target: {', '.join(scores)}", file=sys.stderr)
    return 0
