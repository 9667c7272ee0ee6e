"""List the tasks that a mechanism can be trained on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from attnlab import tasks
from attnlab.cli._console import Console, plain_table, say
from attnlab.cli._invocation import trainer


@dataclass
class Options:
    """How to list them."""

    json: bool = False
    """Print JSON."""


def run(options: Options) -> int:
    """Print one row per task."""
    entries = [tasks.entry(name) for name in tasks.names()]
    if options.json:
        say(json.dumps([asdict(e) for e in entries], indent=2, ensure_ascii=False))
        return 0
    table = plain_table("name", "what is learned", "your files", overflow="fold")
    for e in entries:
        table.add_row(e.name, e.summary, " ".join(e.suffixes))
    console = Console()
    console.print(table)
    console.print(f"\n{trainer()} --task NAME trains on one of them, --data FILE on your own file.", style="dim")
    return 0
