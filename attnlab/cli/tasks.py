"""List the tasks: what a mechanism can be trained on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from rich.table import Table

from attnlab import tasks
from attnlab.cli._console import Console, say
from attnlab.cli._parse import parse
from attnlab.cli._program import trainer


@dataclass
class Options:
    """How to list."""

    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Print a line a task."""
    options = parse(Options, arguments, command="attnlab tasks", description="List the tasks.")
    entries = [tasks.entry(name) for name in tasks.names()]
    if options.json:
        say(json.dumps([asdict(e) for e in entries], indent=2, ensure_ascii=False))
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "what is asked", "your files"):
        table.add_column(column, overflow="fold")
    for e in entries:
        table.add_row(e.name, e.summary, " ".join(e.suffixes))
    console = Console()
    console.print(table)
    console.print(f"\n{trainer()} --task NAME trains on one; --data FILE on your own.", style="dim")
    return 0
