"""Where tables and progress are drawn."""

from __future__ import annotations

import sys

import rich.console


class Console(rich.console.Console):
    """rich's console; a reader that has gone (`| head`) is left to ``attnlab.cli.main``, as for any other output."""

    def on_broken_pipe(self) -> None:
        """Let the error through, where rich would leave with 1, which here means that a check failed."""
        error = sys.exc_info()[1]
        assert error is not None
        raise error
