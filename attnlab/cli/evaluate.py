"""Evaluate a trained network on its test data, or on new data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from attnlab.cli._console import say
from attnlab.cli._parse import parse
from attnlab.utils.errors import UserError


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
    from attnlab.training.inference import evaluate_file
    from attnlab.training.train import evaluate_run

    path = Path(options.run)
    data = None if options.data is None else Path(options.data)
    found = None if path.is_file() else runs.Run.open(path)
    if found is not None and (data is None or runs.has_same_content(found, data)):
        runs.check_data(found, options.data)
        result = evaluate_run(found, options.device, data=data)
        if data is not None:
            result["notes"].insert(0, f"{data} is what the run was trained on: only its test rows are evaluated")
    elif data is None:
        raise UserError(f"{path} is a file, which does not say what its test data were; give --data FILE as well")
    else:
        result = evaluate_file(path, data, options.device)
    if options.json:
        say(json.dumps(result, ensure_ascii=False))
    else:
        show_result(Console(soft_wrap=True), result, details=True)
    return 0
