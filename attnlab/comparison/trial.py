"""One trial: trains its run, or resumes it, or finds it finished. Runs in a worker process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError

from attnlab.comparison.plan import Trial
from attnlab.files.atomic import parse_json, read_bytes, write_text
from attnlab.training import runs
from attnlab.training.assessment import assess_network
from attnlab.training.experiment import load_task_data, prepare
from attnlab.training.hardware import autocast
from attnlab.training.hardware import prepare as device_of
from attnlab.training.objective import Objective
from attnlab.training.train import start, train
from attnlab.utils.errors import UserError
from attnlab.utils.validation import first_error

TESTS_BYTES = 2**20
_TESTS = TypeAdapter(dict[str, dict[str, Annotated[float, Field(allow_inf_nan=False)] | None]])


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: ``finished``, ``failed`` for the reason in ``error``, or ``stopped`` by a signal."""

    how: str
    error: str = ""
    seconds: float = 0.0
    reused: bool = False
    signal: int | None = None


def run_trial(trial: Trial, folder: Path) -> Outcome:
    """Train the trial's run in ``folder``/runs, and evaluate it on its further test data.

    A run that has finished is kept, one that was stopped is resumed. A user's error, such as a loss that became NaN,
    fails this trial only.
    """
    path = folder / "runs" / trial.folder
    reused = True
    try:
        torch.set_num_threads(trial.settings.hardware.threads or 1)
        run = runs.Run.open(path) if (path / "config.json").is_file() else None
        if run is None or run.result() is None:
            reused = False
            experiment = prepare(trial.settings, began=run is not None and run.began)
            resume = run is not None
            run = run or start(experiment, path)
            ended, result = train(experiment, run, resume=resume)
            if result is None:
                return Outcome("stopped", signal=ended.signal)
        if trial.tests and not tests_file(trial, folder).is_file():
            _evaluate(trial, run, folder)
            reused = False
    except UserError as error:
        return Outcome("failed", str(error))
    result = run.result()
    assert result is not None
    return Outcome("finished", seconds=result["seconds"], reused=reused)


def tests_file(trial: Trial, folder: Path) -> Path:
    """The file with the metrics of a trial on its further test data, by point."""
    return folder / "tests" / f"{trial.folder}.json"


def read_tests(trial: Trial, folder: Path, metric: str) -> dict[str, float | None]:
    """A metric on the further test data by point, as text; None where it is not defined.

    Raises:
        UserError: for a file that is missing or damaged.
    """
    file = tests_file(trial, folder)
    try:
        content = _TESTS.validate_python(parse_json(read_bytes(file, TESTS_BYTES)), strict=True)
        return {str(point): content[str(point)][metric] for point in trial.tests}
    except (ValueError, KeyError) as error:
        what = first_error(error) if isinstance(error, ValidationError) else error
        raise UserError(f"{file} is damaged ({what}); remove it, and the same command writes it again") from None


def _evaluate(trial: Trial, run: runs.Run, folder: Path) -> None:
    """Write the metrics of the best network on every further test split."""
    device = device_of(trial.settings.hardware)
    network = run.load_model().to(device)
    metrics = {}
    for point, settings in trial.tests.items():
        task_data = load_task_data(settings)
        assessed = assess_network(
            network,
            task_data.test,
            Objective.of(task_data),
            task_data.encoding,
            batch_size=max(settings.training.batch_size, 128),
            autocast=autocast(settings.hardware, device),
        )
        metrics[str(point)] = assessed["metrics"]
    tests_file(trial, folder).parent.mkdir(parents=True, exist_ok=True)
    write_text(tests_file(trial, folder), json.dumps(metrics))


def read_result(trial: Trial, folder: Path) -> dict[str, Any] | None:
    """The result of a trial's run; None if it has not finished."""
    path = folder / "runs" / trial.folder
    return runs.Run.open(path).result() if (path / "config.json").is_file() else None
