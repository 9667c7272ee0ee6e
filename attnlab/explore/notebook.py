"""The page inside a notebook."""

from __future__ import annotations

from html import escape
from pathlib import Path

from attnlab.explore.explorer import Explorer
from attnlab.explore.link import fragment
from attnlab.explore.server import Server
from attnlab.explore.setup import Setup
from attnlab.explore.shelf import Shelf, run_folders


class Page:
    """A running server whose page a notebook shows in a frame; `stop` ends it.

    Args:
        server: the server, already started.
        setup: what the page shows first.
        height: of the frame, in pixels.
    """

    def __init__(self, server: Server, setup: Setup, height: int) -> None:
        self._server, self._height = server, height
        self.url = server.url + fragment(setup)

    def _repr_html_(self) -> str:
        """Return the frame."""
        return (
            f'<iframe src="{escape(self.url)}" width="100%" height="{self._height}" style="border: 0" '
            'title="attention explorer"></iframe>'
        )

    def __repr__(self) -> str:
        return f"Page({self.url!r})"

    def stop(self) -> None:
        """Stop the server; the frame then shows the last state."""
        self._server.stop()


def show(setup: Setup | None = None, *, runs: str | Path = "runs", height: int = 900) -> Page:
    """Start a server on a free port of this machine, and return its page for display in a notebook.

    The notebook's browser must run on the same machine, or reach the port through a tunnel.

    Args:
        setup: what the page shows first; a small trained network by default.
        runs: the folder whose runs can be chosen on the page.
        height: of the frame, in pixels.

    Raises:
        MissingExtraError: without the extra ``explore``.
        UserError: for a setup that cannot be built.
    """
    setup = Setup() if setup is None else setup
    explorer = Explorer(Shelf(run_folders(Path(runs))))
    explorer.view(setup)
    server = Server(explorer, port=0)
    server.start()
    return Page(server, setup, height)
