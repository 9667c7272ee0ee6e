"""Text that several commands print: a command line, a duration, the table of results."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rich.table import Table

from attnlab.cli._console import UNLIMITED, Console, plain_table
from attnlab.cli._flags import TrainArgs
from attnlab.cli._invocation import trainer
from attnlab.tasks.metrics import METRICS
from attnlab.training.report import MAX_SHOWN, flag, metric_names, number, options, ranking
from attnlab.utils.escape import one_line, shell_word

ENDED = {
    "finished": "training finished",
    "early": "training stopped early",
    "unfinished": "training has not finished",
}


def command_line(args: TrainArgs) -> str:
    """The command that these arguments were parsed from, without what is the default."""
    words = []
    for f in fields(args.output):
        value = getattr(args.output, f.name)
        if f.name not in ("interactive", "config") and value not in (None, f.default):
            words += [f"--{f.name}"] if value is True else flag(f.name, value)
    return " ".join([trainer(), *options(args.settings), *map(shell_word, words)])


def duration(seconds: float) -> str:
    """``75`` as ``1 min 15 s``."""
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def show_result(console: Console, result: dict[str, Any], *, details: bool = False) -> None:
    """Print the test result and its baselines; ``details`` adds the result for each class."""
    if not console.is_terminal:
        console.width = UNLIMITED
    metric, names = result["metric"], metric_names(result)
    ended = f"; {ENDED[result['ended']]}" if "ended" in result else ""
    shown = len(names)
    while shown > 1 and not _fits(_ranking_table(result, names[:shown]), console):
        shown -= 1
    console.print(
        f"\ntest {METRICS[metric].label} on {result['test_examples']:,} examples "
        f"(best network on the validation data, step {result['best_step']:,}{ended})\n",
    )
    console.print(_ranking_table(result, names[:shown]))
    if shown < len(names):
        hidden = ", ".join(METRICS[name].short for name in names[shown:])
        console.print(f"\n  a wider terminal also shows {hidden}", style="dim")
    if details and result.get("confusion"):
        _show_classes(console, result)
    for line in (*result["notes"], result["remark"]):
        if line:
            console.print(f"\n  {line}", style="dim")


def _ranking_table(result: dict[str, Any], names: list[str]) -> Table:
    """The result and its baselines, the best first, by the metrics ``names``."""
    table = _right_aligned("", *(METRICS[name].short for name in names))
    table.show_header = len(metric_names(result)) > 1
    for name, values in ranking(result):
        cells = [number(m, values.get(m)) for m in names]
        table.add_row("  " + name, *cells, style="bold" if name == result["model"] else "")
    return table


def _show_classes(console: Console, result: dict[str, Any]) -> None:
    """Print precision, recall and F1 of each class, and the confusion matrix if it is small."""
    table = _right_aligned("  class", "precision", "recall", "F1", "examples")
    labels = [one_line(str(label)) for label in result["labels"]]
    for each in result["per_class"]:
        scores = [f"{each[key]:.3f}" for key in ("precision", "recall", "f1")]
        table.add_row(f"  {one_line(str(each['label']))}", *scores, f"{each['count']:,}")
    console.print()
    console.print(table)
    if len(labels) > MAX_SHOWN:
        return
    matrix = _confusion_table("true class / predicted class", labels, labels, result["confusion"])
    if not _fits(matrix, console):
        columns = [str(i) for i in range(1, len(labels) + 1)]
        rows = [f"{i} {label}" for i, label in zip(columns, labels, strict=True)]
        matrix = _confusion_table("true / predicted", rows, columns, result["confusion"])
    console.print()
    console.print(matrix)


def _confusion_table(corner: str, rows: list[str], columns: list[str], counts: list[list[int]]) -> Table:
    matrix = _right_aligned(f"  {corner}", *columns)
    for row, values in zip(rows, counts, strict=True):
        matrix.add_row(f"  {row}", *map(str, values))
    return matrix


def _right_aligned(first: str, *headers: str) -> Table:
    """A table whose columns after the first are aligned to the right."""
    table = plain_table(first, *headers, right=True, bold=False)
    table.padding = (0, 2)
    table.columns[0].justify = "left"
    return table


def _fits(table: Table, console: Console) -> bool:
    return console.width_of(table) <= console.width
