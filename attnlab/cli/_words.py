"""The words that several commands print."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rich.table import Table

from attnlab.cli._console import Console
from attnlab.cli._flags import Asked
from attnlab.cli._program import trainer
from attnlab.escape import shell_word
from attnlab.training.objective import UNITS
from attnlab.training.report import number, options, ranking


def command_line(asked: Asked) -> str:
    """The command that asks for the same."""
    words = []
    for f in fields(asked.output):
        value = getattr(asked.output, f.name)
        if f.name not in ("interactive", "config") and value not in (None, f.default):
            words += [f"--{f.name}"] if value is True else [f"--{f.name}", shell_word(str(value))]
    return " ".join([trainer(), *options(asked.settings), *words])


def duration(seconds: float) -> str:
    """``75`` as ``1 min 15 s``."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def show_result(console: Console, result: dict[str, Any]) -> None:
    """The held-out result among its baselines."""
    metric = result["metric"]
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    for name, value in ranking(result):
        style = "bold" if name == result["model"] else ""
        table.add_row("  " + name, number(metric, value), style=style)
    console.print(
        f"\nheld-out {UNITS[metric]} on {result['test_examples']:,} examples, seen once "
        f"(the network that was best on validation, step {result['best_step']:,})\n",
    )
    console.print(table)
    if result["remark"]:
        console.print(f"\n  {result['remark']}", style="dim")
