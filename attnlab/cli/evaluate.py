"""Judge a run's network once more on its held-out data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.cli._parse import parse


@dataclass
class Options:
    """What to judge."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The run's folder."""
    device: str = "auto"
    """Where to compute."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Compute the held-out metric again, and print it beside the baselines."""
    options = parse(Options, arguments, command="attnlab evaluate", description="Judge a run on its held-out data.")
    from attnlab.cli._console import Console
    from attnlab.cli._words import show_result
    from attnlab.training import runs
    from attnlab.training.train import evaluate_run

    found = runs.Run.open(Path(options.run))
    runs.check_data(found)
    result = evaluate_run(found, options.device)
    if options.json:
        say(json.dumps(result, ensure_ascii=False))
    else:
        show_result(Console(soft_wrap=True), result)
    return 0
