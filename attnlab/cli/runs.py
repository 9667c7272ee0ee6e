"""List the runs, with what each reached."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.cli._parse import parse
from attnlab.cli._program import trainer
from attnlab.errors import UserError


@dataclass
class Options:
    """Where to look."""

    folder: Annotated[Positional[str], arg(metavar="[FOLDER]")] = "runs"
    """The folder that holds the runs."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Print a line a run."""
    options = parse(Options, arguments, command="attnlab runs", description="List the runs.")
    from rich.table import Table

    from attnlab.cli._console import Console
    from attnlab.training.report import number
    from attnlab.training.runs import Damaged, find

    if options.folder != Options.folder and not Path(options.folder).is_dir():
        raise UserError(f"{options.folder} is no folder; give the one that holds the runs")
    rows: list[dict[str, Any]] = []
    for found in find(Path(options.folder)):
        if isinstance(found, Damaged):
            rows.append({"run": str(found.path), "status": "damaged", "reason": found.reason})
            continue
        settings, result, lines = found.config["settings"], found.result(), found.metrics()
        rows.append(
            {
                "run": str(found.path),
                "model": settings["model"],
                "task": settings["task"],
                "metric": found.config["metric"],
                "test": None if result is None else result["test"],
                "step": lines[-1]["step"] if lines else 0,
                "status": "running or stopped" if result is None else result["ended"],
            }
        )
    if options.json:
        say(json.dumps(rows))
        return 0
    if not rows:
        say(f"no runs in {options.folder}; {trainer()} makes one")
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("run", "model", "task", "step", "held out", "status"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        if row["status"] == "damaged":
            table.add_row(row["run"], "", "", "", "", f"damaged: {row['reason']}")
            continue
        value = "" if row["test"] is None else f"{row['metric']} {number(row['metric'], row['test'])}"
        table.add_row(row["run"], row["model"], row["task"], f"{row['step']:,}", value, row["status"])
    Console(width=10_000).print(table)  # a line a run, also where the terminal is narrow
    return 0
