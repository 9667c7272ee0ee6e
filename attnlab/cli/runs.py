"""List the runs with what each reached, or compare two: runs diff A B."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.cli._parse import parse
from attnlab.cli._program import short, trainer
from attnlab.utils.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from attnlab.cli._console import Console
    from attnlab.training.listing import Row


@dataclass
class Options:
    """Where to look."""

    folder: Annotated[Positional[str], arg(metavar="[FOLDER]")] = "runs"
    """The folder that holds the runs; write ./diff for one that is called diff."""
    json: bool = False
    """Print JSON."""


@dataclass
class DiffOptions:
    """What to compare."""

    a: Annotated[Positional[str], arg(metavar="A")]
    """A run's folder."""
    b: Annotated[Positional[str], arg(metavar="B")]
    """Another run's folder."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Print one line per run, or the differences of two."""
    if arguments[:1] == ["diff"]:
        return _diff(arguments[1:])
    description = "List the runs. To compare two of them: attnlab runs diff A B"
    options = parse(Options, arguments, command="attnlab runs", description=description)
    from attnlab.training.listing import rows

    if options.folder != Options.folder and not Path(options.folder).is_dir():
        raise UserError(f"{options.folder} is no folder; give the one that holds the runs")
    listed = rows(Path(options.folder))
    if options.json:
        say(json.dumps([row.as_json() for row in listed]))
    elif listed:
        _show(listed)
    else:
        say(f"no runs in {options.folder}; {trainer()} makes one")
    return 0


def _show(listed: list[Row]) -> None:
    """A table where it fits, else a paragraph per run; into a pipe always one line per run."""
    from rich.padding import Padding

    from attnlab.cli._console import Console

    console = Console()
    cells = [_cells(row) for row in listed]
    table = _table(list(cells[0]))
    for row in cells:
        table.add_row(*map(_plain, row.values()))
    width = _width(console, table)
    if width <= console.width or not console.is_terminal:
        Console(width=width).print(table)
    else:
        for row in cells:
            trained = " on ".join(filter(None, (row["model"], row["task or data"])))
            counts = [f"{name} {row[name]}" for name in ("seed", "step") if row[name]]
            outcome = ", ".join(filter(None, (row["held out"], row["status"])))
            console.print(_plain(row["run"], "bold"), overflow="fold")
            for text in filter(None, (", ".join(filter(None, (trained, *counts))), row["settings"], outcome)):
                console.print(Padding(_plain(text), (0, 0, 0, 2), expand=False), overflow="fold")
    for listed_row in listed:
        if listed_row.reason is not None:
            console.print(_plain(f"damaged: {listed_row.reason}"), soft_wrap=not console.is_terminal)


def _width(console: Console, table: Table) -> int:
    """The width that a table takes where no line is broken."""
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def _cells(row: Row) -> dict[str, str]:
    from attnlab.training.report import number

    return {
        "run": row.run,
        "model": row.model or "",
        "task or data": (row.task or "") if row.data is None else Path(row.data).name,
        "seed": "" if row.seed is None else str(row.seed),
        "settings": " ".join(f"{k}={_value(v)}" for k, v in row.settings.items() if v is not None),
        "step": "" if row.step is None else f"{row.step:,}",
        "held out": "" if row.test is None or row.metric is None else f"{row.metric} {number(row.metric, row.test)}",
        "status": row.status,
    }


def _diff(arguments: list[str]) -> int:
    """Print what differs between two runs."""
    if not arguments:
        raise UserError("runs diff compares two runs: runs diff A B; to list a folder called diff, write ./diff")
    description = "Print the settings, data, versions and results in which two runs differ."
    options = parse(DiffOptions, arguments, command="attnlab runs diff", description=description)
    from attnlab.cli._console import Console
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
    table = _table(["", options.a, options.b])
    for group, values in groups.items():
        if values:
            table.add_row(_plain(group, "bold"), "", "")
        for name, (one, other) in values.items():
            table.add_row(_plain(f"  {name}"), _plain(_value(one)), _plain(_value(other)))
    Console(width=console.width if console.is_terminal else _width(console, table)).print(table)
    return 0


def _table(columns: list[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(_plain(column), overflow="fold")
    return table


def _plain(text: str, style: str = "") -> Any:
    """Text in which brackets are no markup."""
    from rich.text import Text

    return Text(text, style=style)


def _value(value: Any) -> str:
    """A setting or a result as it is shown: floats to four digits, hashes and paths shortened."""
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
