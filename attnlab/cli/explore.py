"""Open a page in the browser that shows the attention of every head of a network."""

from __future__ import annotations

import os
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text as Line
from tyro.conf import Positional, arg

from attnlab.cli._console import Console, say
from attnlab.utils.errors import UserError

if TYPE_CHECKING:
    from attnlab.explore.setup import Setup
    from attnlab.explore.shelf import Shelf

PRETRAINED = ("minilm",)
SENTENCE = "The animal did not cross the street because it was too tired"
"""What a pretrained network shows first."""


@dataclass
class Options:
    """What to show."""

    what: Annotated[Positional[str], arg(metavar="[WHAT]")] = ""
    """A mechanism, the folder of a run, or a pretrained network (minilm); by default a small trained network."""
    text: Annotated[str | None, arg(metavar="TEXT")] = None
    """The text that is shown first."""
    runs: Annotated[str, arg(metavar="FOLDER")] = "runs"
    """The folder whose runs can be chosen on the page."""
    state: Annotated[str | None, arg(metavar="JSON")] = None
    """The setup as JSON, as the page's own links hold it; replaces WHAT and --text."""
    export: Annotated[str | None, arg(metavar="FILE")] = None
    """Write a self-contained page to this file, and start no server."""
    overwrite: bool = False
    """Replace the file in --export."""
    port: int = 8765
    """The port on this machine; 0 for a free one."""
    browser: bool = True
    """Open the page in the default browser."""


def run(options: Options) -> int:
    """Serve the page until Ctrl-C, or write it to a file."""
    if not 0 <= options.port <= 65_535:
        raise UserError(f"--port must be from 0 to 65,535, not {options.port}")
    from attnlab.explore import export
    from attnlab.explore.explorer import Explorer
    from attnlab.explore.link import fragment
    from attnlab.explore.server import Server
    from attnlab.explore.shelf import Shelf
    from attnlab.training.checkpoint import check_output

    target = None if options.export is None else Path(options.export)
    if target is not None:
        check_output(target, overwrite=options.overwrite, flag="--export", ours=False)
    folders = _run_folders(options)
    explorer = Explorer(Shelf(folders))
    setup = _setup(options, explorer.shelf)
    with Console(stderr=True).status(Line("preparing the network; one that is not trained yet takes some seconds")):
        explorer.view(setup)  # an error is reported here, before a browser opens
    if target is not None:
        size = export.write(explorer, setup, target)
        say(f"wrote {target}, {size / 2**20:.1f} MiB; it needs no server and loads nothing")
        return 0
    server = Server(explorer, options.port)
    address = f"{server.url}{fragment(setup)}"
    say(f"attention explorer at {address} (Ctrl-C stops it)")
    sys.stdout.flush()
    if options.browser:
        webbrowser.open(address)
    server.wait()
    return 0


def _run_folders(options: Options) -> list[Path]:
    """The runs that can be chosen; the one that is asked for comes first."""
    from attnlab.explore.shelf import run_folders

    folders = run_folders(Path(options.runs))
    if not _is_run(options.what):
        return folders
    chosen = Path(options.what)
    return [chosen, *(path for path in folders if path.resolve() != chosen.resolve())]


def _is_run(what: str) -> bool:
    return "/" in what or os.sep in what or (Path(what) / "config.json").is_file()


def _setup(options: Options, shelf: Shelf) -> Setup:
    """The view that is shown first."""
    from pydantic import ValidationError

    from attnlab.catalog import pattern, registry
    from attnlab.explore.setup import Pretrained, RunNetwork, Setup, TaskExample, Text, Trained, Untrained
    from attnlab.training.runs import Run
    from attnlab.utils.validation import first_error

    if options.state is not None and (options.what or options.text is not None):
        raise UserError("--state is the whole setup; leave out WHAT and --text")
    try:
        if options.state is not None:
            return Setup.model_validate_json(options.state)
        what, text = options.what, None if options.text is None else Text(text=options.text)
        if not what:
            return Setup(input=text or Text())
        if _is_run(what):
            Run.open(Path(what))
            return Setup(source=RunNetwork(run=next(iter(shelf.runs))), input=text or TaskExample())
        if what in PRETRAINED:
            return Setup(source=Pretrained(name=what), input=text or Text(text=SENTENCE))
        if what in registry.names():
            return Setup(source=Trained(model=what), input=text or Text())
        pattern.mechanisms(what)  # refuses unknown names
        return Setup(source=Untrained(model=what, layers=len(pattern.period(what))), input=text or Text())
    except ValidationError as error:
        raise UserError(f"{'--state' if options.state is not None else '--text'}: {first_error(error)}") from None
