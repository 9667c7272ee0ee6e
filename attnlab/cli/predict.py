"""Let a trained network answer for new data."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.cli._parse import parse
from attnlab.errors import UserError


@dataclass
class Options:
    """What to predict on."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run's folder, or a file written by --save_path."""
    data: Annotated[str, arg(metavar="FILE")]
    """The new data, in a file like the one that the network was trained on; or .npz with x."""
    output: Annotated[str | None, arg(metavar="STR")] = None
    """Write here instead of printing: .csv or .jsonl."""
    overwrite: bool = False
    """Replace the file in --output."""
    device: str = "auto"
    """Where to compute."""


def run(arguments: list[str]) -> int:
    """Print a row an example, as CSV."""
    options = parse(Options, arguments, command="attnlab predict", description="Predict on new data.")
    output = None if options.output is None else Path(options.output)
    if output is not None and output.suffix not in (".csv", ".jsonl"):
        raise UserError(f"--output {output} must end in .csv or .jsonl")
    if not Path(options.data).is_file():
        raise UserError(f"--data {options.data} is not there")
    from attnlab.files import write_text
    from attnlab.training.checkpoint import check_output
    from attnlab.training.train import predict_file

    if output is not None:
        check_output(output, inputs=[Path(options.data), Path(options.run)], overwrite=options.overwrite)
    columns = predict_file(Path(options.run), Path(options.data), options.device)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is None or output.suffix == ".csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    if output is None:
        say(text, end="")
    else:
        write_text(output, text, follow=True)
        say(f"{len(rows):,} rows in {output}")
    return 0
