"""List the runs with their results, or compare two: runs diff A B."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.padding import Padding
from rich.text import Text
from tyro.conf import Positional, arg

from attnlab.cli._console import Console, plain_table, say
from attnlab.cli._invocation import short, trainer
from attnlab.cli._parse import parse
from attnlab.utils.errors import UserError

if TYPE_CHECKING:
    from attnlab.training.listing import Row


@dataclass
class ListOptions:
    """Which runs to list."""

    folder: Annotated[Positional[str], arg(metavar="[FOLDER]")] = "runs"
    """The folder that contains the runs; write ./diff for one that is called diff."""
    json: bool = False
    """Print JSON."""


@dataclass
class DiffOptions:
    """What to compare."""

    a: Annotated[Positional[str], arg(metavar="A")]
    """The folder of a run."""
    b: Annotated[Positional[str], arg(metavar="B")]
    """The folder of another run."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Print one line per run, or the differences between two."""
    if arguments[:1] == ["diff"]:
        return _diff(arguments[1:])
    description = "List the runs. To compare two of them: attnlab runs diff A B"
    options = parse(ListOptions, arguments, command="attnlab runs", description=description)
    from attnlab.training.listing import rows

    if options.folder != ListOptions.folder and not Path(options.folder).is_dir():
        raise UserError(f"{options.folder} is not a folder; give the folder that contains the runs")
    listed = rows(Path(options.folder))
    if options.json:
        say(json.dumps([row.as_json() for row in listed]))
    elif listed:
        _show(listed)
    else:
        say(f"no runs in {options.folder}; {trainer()} creates one")
    return 0


def _show(listed: list[Row]) -> None:
    """Print a table if it fits the terminal, else a paragraph per run; always one line per run into a pipe."""
    console = Console()
    rows = [_cells(row) for row in listed]
    table = plain_table(*rows[0], overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    width = console.width_of(table)
    if width <= console.width or not console.is_terminal:
        Console(width=width).print(table)
    else:
        for row in rows:
            trained = " on ".join(filter(None, (row["model"], row["task or data"])))
            counts = [f"{name} {row[name]}" for name in ("seed", "step") if row[name]]
            outcome = ", ".join(filter(None, (row["test"], row["status"])))
            console.print(Text(row["run"], style="bold"), overflow="fold")
            for text in filter(None, (", ".join(filter(None, (trained, *counts))), row["settings"], outcome)):
                console.print(Padding(Text(text), (0, 0, 0, 2), expand=False), overflow="fold")
    for listed_row in listed:
        if listed_row.reason is not None:
            console.print(Text(f"damaged: {listed_row.reason}"), soft_wrap=not console.is_terminal)


def _cells(row: Row) -> dict[str, str]:
    from attnlab.training.report import number

    return {
        "run": row.run,
        "model": row.model or "",
        "task or data": (row.task or "") if row.data is None else Path(row.data).name,
        "seed": "" if row.seed is None else str(row.seed),
        "settings": " ".join(f"{k}={_format(v)}" for k, v in row.settings.items() if v is not None),
        "step": "" if row.step is None else f"{row.step:,}",
        "test": "" if row.test is None or row.metric is None else f"{row.metric} {number(row.metric, row.test)}",
        "status": row.status,
    }


def _diff(arguments: list[str]) -> int:
    """Print the differences between two runs."""
    if not arguments:
        raise UserError("runs diff compares two runs: runs diff A B; to list a folder called diff, write ./diff")
    description = "Print the settings, data, versions and results in which two runs differ."
    options = parse(DiffOptions, arguments, command="attnlab runs diff", description=description)
    from attnlab.training.listing import differences
    from attnlab.training.runs import Run

    groups = differences(Run.open(Path(options.a)), Run.open(Path(options.b)))
    if options.json:
        say(json.dumps({"a": options.a, "b": options.b, **groups}))
        return 0
    if not any(groups.values()):
        say(f"{short(Path(options.a))} and {short(Path(options.b))} do not differ")
        return 0
    console = Console()
    table = plain_table("", options.a, options.b, overflow="fold")
    for group, values in groups.items():
        if values:
            table.add_row(Text(group, style="bold"))
        for name, (a, b) in values.items():
            table.add_row(f"  {name}", _format(a), _format(b))
    Console(width=console.width if console.is_terminal else console.width_of(table)).print(table)
    return 0


def _format(value: Any) -> str:
    """A setting or a result: floats with four digits, hashes and paths shortened."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    text = str(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]
    return short(Path(text)) if os.path.isabs(text) else text  # noqa: PTH117
