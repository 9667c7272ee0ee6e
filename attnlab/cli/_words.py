"""The words that several commands print."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rich.table import Table

from attnlab.cli._console import Console
from attnlab.cli._flags import Asked
from attnlab.cli._program import trainer
from attnlab.tasks.metrics import METRICS
from attnlab.training.report import MAX_SHOWN, flag, metric_names, number, options, ranking
from attnlab.utils.escape import one_line, shell_word

ENDED = {
    "finished": "training finished",
    "early": "training stopped early",
    "unfinished": "training has not ended",
}

WIDE = 10_000
"""Columns in which every table fits."""


def command_line(asked: Asked) -> str:
    """The command that asks for the same."""
    words = []
    for f in fields(asked.output):
        value = getattr(asked.output, f.name)
        if f.name not in ("interactive", "config") and value not in (None, f.default):
            words += [f"--{f.name}"] if value is True else flag(f.name, value)
    return " ".join([trainer(), *options(asked.settings), *map(shell_word, words)])


def duration(seconds: float) -> str:
    """``75`` as ``1 min 15 s``."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def show_result(console: Console, result: dict[str, Any], *, details: bool = False) -> None:
    """The result on the test data among its baselines; with ``details`` also that of each class."""
    if not console.is_terminal:
        console.width = WIDE
    metric, names = result["metric"], metric_names(result)
    ended = f"; {ENDED[result['ended']]}" if "ended" in result else ""
    table, shown = ranking_table(result, names), len(names)
    while shown > 1 and not fits(table, console):
        shown -= 1
        table = ranking_table(result, names[:shown])
    console.print(
        f"\ntest {METRICS[metric].label} on {result['test_examples']:,} examples "
        f"(the network that was best on validation, step {result['best_step']:,}{ended})\n",
    )
    console.print(table)
    if shown < len(names):
        left_out = ", ".join(METRICS[name].short for name in names[shown:])
        console.print(f"\n  a wider terminal shows {left_out} too", style="dim")
    if details and result.get("confusion"):
        show_classes(console, result)
    for line in (*result["notes"], result["remark"]):
        if line:
            console.print(f"\n  {line}", style="dim")


def ranking_table(result: dict[str, Any], names: list[str]) -> Table:
    """The result and its baselines, the best one first, with some of the metrics."""
    table = Table(box=None, pad_edge=False, show_header=len(metric_names(result)) > 1, padding=(0, 2), header_style="")
    for header in ("", *(METRICS[name].short for name in names)):
        table.add_column(header, justify="right" if header else "left")
    for name, values in ranking(result):
        cells = [number(m, values.get(m)) for m in names]
        table.add_row("  " + name, *cells, style="bold" if name == result["model"] else "")
    return table


def show_classes(console: Console, result: dict[str, Any]) -> None:
    """Precision, recall and F1 of each class, and the confusion matrix where it is small."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="")
    for header in ("  class", "precision", "recall", "F1", "examples"):
        table.add_column(header, justify="left" if "class" in header else "right")
    for each in result["per_class"]:
        scores = [f"{each[key]:.3f}" for key in ("precision", "recall", "f1")]
        table.add_row(f"  {one_line(str(each['label']))}", *scores, f"{each['count']:,}")
    console.print()
    console.print(table)
    if len(result["labels"]) > MAX_SHOWN:
        return
    labels = [one_line(str(label)) for label in result["labels"]]
    matrix = confusion_table("true class, then predicted as", labels, labels, result["confusion"])
    if not fits(matrix, console):
        numbers = [str(i) for i in range(1, len(labels) + 1)]
        rows = [f"{i} {label}" for i, label in zip(numbers, labels, strict=True)]
        matrix = confusion_table("true, predicted", rows, numbers, result["confusion"])
    console.print()
    console.print(matrix)


def confusion_table(corner: str, rows: list[str], columns: list[str], counts: list[list[int]]) -> Table:
    """A confusion matrix with the names of its true (rows) and predicted classes (columns)."""
    matrix = Table(box=None, pad_edge=False, padding=(0, 2), header_style="")
    matrix.add_column(f"  {corner}")
    for column in columns:
        matrix.add_column(column, justify="right")
    for row, numbers in zip(rows, counts, strict=True):
        matrix.add_row(f"  {row}", *map(str, numbers))
    return matrix


def fits(table: Table, console: Console) -> bool:
    """Whether no column of a table has to be cut or wrapped."""
    return console.measure(table, options=console.options.update(width=WIDE)).maximum <= console.width
