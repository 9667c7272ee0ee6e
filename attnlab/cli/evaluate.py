"""Evaluate a trained network on its test data, or on new data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.cli._parse import parse
from attnlab.errors import UserError


@dataclass
class Options:
    """What to evaluate."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run's folder; with --data also a file written by --save_path."""
    data: Annotated[str | None, arg(metavar="FILE")] = None
    """New data with their targets, instead of the test data; the data that it was trained on are not needed."""
    device: str = "auto"
    """Where to compute."""
    json: bool = False
    """Print JSON."""


def run(arguments: list[str]) -> int:
    """Compute the metrics and print them: on the test data beside the baselines, on new data alone."""
    options = parse(Options, arguments, command="attnlab evaluate", description=(__doc__ or "").strip())
    from attnlab.cli._console import Console
    from attnlab.cli._words import show_result
    from attnlab.training import runs
    from attnlab.training.train import evaluate_file, evaluate_run

    path = Path(options.run)
    if options.data is not None:
        result = evaluate_file(path, Path(options.data), options.device)
    elif path.is_file():
        raise UserError(f"{path} is a file, which does not say what its test data were; give --data FILE as well")
    else:
        found = runs.Run.open(path)
        runs.check_data(found)
        result = evaluate_run(found, options.device)
    if options.json:
        say(json.dumps(result, ensure_ascii=False))
    else:
        show_result(Console(soft_wrap=True), result, details=True)
    return 0
