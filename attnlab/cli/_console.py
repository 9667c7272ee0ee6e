"""Where everything is printed: what comes out of files is escaped here, and never read as markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

import rich.console
from rich.segment import Segment
from rich.text import Text

from attnlab.utils.escape import visible


class Console(rich.console.Console):
    """rich's console without markup: styles are given by ``style=`` and `rich.text.Text`.

    A reader that has gone (`| head`) is left to ``attnlab.cli.main``, as for any other output.
    """

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
        """Let the error through, where rich would leave with 1, which here means that a check failed."""
        error = sys.exc_info()[1]
        assert error is not None
        raise error


def say(text: str = "", *, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print text; control characters are escaped on a terminal and in messages, and data in a pipe stay exact."""
    stream = sys.stdout if file is None else file
    if stream is None:  # closed by the parent process
        return
    if stream is sys.stderr or stream.isatty():
        text = visible(text)
    print(text, end=end, file=stream, flush=flush)
