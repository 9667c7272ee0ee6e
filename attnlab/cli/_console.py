"""The only module that prints. Text from files is escaped and never parsed as markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

import rich.console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from attnlab.utils.escape import visible

UNLIMITED = 10_000
"""Columns in which every table fits."""


class Console(rich.console.Console):
    """rich's console without markup; styles are given by ``style=`` and `rich.text.Text`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments, with control characters in their text escaped."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text, escaped before its width is measured."""
        return super().render_str(visible(text), **options)

    def on_broken_pipe(self) -> None:
        """Raise, where rich would exit with code 1; `attnlab.cli.main` handles it."""
        error = sys.exc_info()[1]
        assert error is not None
        raise error

    def width_of(self, table: Table) -> int:
        """The columns that a table takes when no cell is wrapped."""
        return self.measure(table, options=self.options.update(width=UNLIMITED)).maximum


def plain_table(*headers: str, right: bool = False, bold: bool = True, **options: Any) -> Table:
    """A table without lines, whose columns have these headers, alignment and ``options`` of rich."""
    table = Table(box=None, pad_edge=False, header_style="bold" if bold else "")
    for header in headers:
        table.add_column(Text(header), justify="right" if right else "left", **options)
    return table


def say(text: str = "", *, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print text. Control characters are escaped on a terminal and on standard error; data in a pipe stay exact."""
    stream = sys.stdout if file is None else file
    if stream is None:  # closed by the parent process
        return
    if stream is sys.stderr or stream.isatty():
        text = visible(text)
    print(text, end=end, file=stream, flush=flush)
