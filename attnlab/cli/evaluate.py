"""Evaluate a trained network on its test data or on new data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from attnlab.cli._console import Console, say
from attnlab.utils.errors import UserError


@dataclass
class Options:
    """What to evaluate."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """The folder of a run; with --data also a file written by --save_path."""
    data: Annotated[str | None, arg(metavar="FILE")] = None
    """New data with their targets, in place of the test data; the training data are then not needed."""
    device: str = "auto"
    """The device to compute on."""
    json: bool = False
    """Print JSON."""


def run(options: Options) -> int:
    """Print the metrics, on the test data next to the baselines."""
    from attnlab.cli._format import show_result
    from attnlab.training import runs
    from attnlab.training.inference import evaluate_file
    from attnlab.training.train import evaluate_run

    path = Path(options.run)
    data = None if options.data is None else Path(options.data)
    trained = None if path.is_file() else runs.Run.open(path)
    if trained is not None and (data is None or runs.has_same_content(trained, data)):
        runs.check_data(trained, options.data)
        result = evaluate_run(trained, options.device, data=data)
        if data is not None:
            result["notes"].insert(0, f"the run was trained on {data}: only its test rows are evaluated")
    elif data is None:
        raise UserError(f"{path} is a file, which does not contain the test data; add --data FILE")
    else:
        result = evaluate_file(path, data, options.device)
    if options.json:
        say(json.dumps(result, ensure_ascii=False))
    else:
        show_result(Console(soft_wrap=True), result, details=True)
    return 0
