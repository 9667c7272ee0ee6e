"""A whole run: training, and one evaluation of the best network on the test data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from attnlab import tasks
from attnlab.tasks.metrics import METRICS
from attnlab.training import hardware, runs
from attnlab.training.assessment import as_json, assess_network
from attnlab.training.checkpoint import load_tensors
from attnlab.training.distributed import ALONE, Processes
from attnlab.training.experiment import Experiment, check_same_data, reopen
from attnlab.training.extension import extend, extends
from attnlab.training.loop import Callback, Outcome, Trainer
from attnlab.training.objective import Objective
from attnlab.training.signals import StoppedError, raising_signals
from attnlab.utils.errors import UserError


def start(experiment: Experiment, path: Path | None, *, overwrite: bool = False) -> runs.Run:
    """Create the folder of a run."""
    config = runs.make_config(
        experiment.settings, experiment.network, experiment.task_data, torch.get_num_threads(), experiment.init_sha256
    )
    return runs.Run.create(path, config, overwrite=overwrite)


def train(
    experiment: Experiment,
    run: runs.Run,
    *,
    resume: bool = False,
    checkpoint_seconds: float = 10.0,
    callback: Callback | None = None,
    on_end: Callable[[], None] | None = None,
    processes: Processes = ALONE,
) -> tuple[Outcome, dict[str, Any] | None]:
    """Train, call ``on_end``, then evaluate on the test data.

    With ``resume``, training continues from the folder's last checkpoint; if ``experiment`` has more epochs or steps
    than the run, the run is extended. A second signal while training stops raises a `StoppedError`. The first of
    several ``processes`` calls this, and the others call `assist`.

    Returns:
        How training ended, and the result (see `evaluate_test`), None if a signal stopped training or evaluation.
    """
    settings, task_data = experiment.settings, experiment.task_data
    with hardware.memory_advice(settings.training.batch_size), run.alone(), raising_signals():
        if resume:
            check_same_data(run, task_data)
        if extends(run, settings):
            run = extend(run, settings)
        outcome = _fit(experiment, run, processes, resume, callback, checkpoint_seconds)
        if on_end is not None:
            on_end()
        if outcome.how == "stopped":
            return outcome, None
        try:
            return outcome, evaluate_test(experiment, run, outcome)
        except StoppedError as stop:
            return replace(outcome, how="stopped", signal=stop.signal), None


def assist(experiment: Experiment, processes: Processes, *, resume: bool = False) -> Outcome:
    """Train together with the first process, which has the run."""
    with hardware.memory_advice(experiment.settings.training.batch_size), raising_signals():
        return _fit(experiment, None, processes, resume)


def _fit(
    experiment: Experiment,
    run: runs.Run | None,
    processes: Processes,
    resume: bool,
    callback: Callback | None = None,
    checkpoint_seconds: float = 10.0,
) -> Outcome:
    with processes.connected():
        processes.join(experiment.device)
        trainer = Trainer(
            experiment.network,
            experiment.task_data,
            experiment.settings,
            run,
            checkpoint_seconds=checkpoint_seconds,
            processes=processes,
        )
        if resume:
            trainer.restore()
        return trainer.fit(callback)


def evaluate_test(experiment: Experiment, run: runs.Run, outcome: Outcome) -> dict[str, Any]:
    """The best network's result on the test data, with the baselines; written to the run's folder."""
    from attnlab.training.report import write_report

    if outcome.best is None:
        raise UserError(
            f"no evaluation gave a finite metric, so {run.path} holds no network; try a lower --learning_rate"
        )
    result = _result(experiment, run, outcome)
    write_report(run, result)
    run.write_result(result)  # last, so that a run with a result is complete
    return result


def evaluate_run(run: runs.Run, device: str = "auto", *, data: Path | None = None) -> dict[str, Any]:
    """A run's result, computed again from its data and its best network.

    ``ended`` is how the run ended, ``finished`` or ``early``, and ``unfinished`` if training has not ended.
    ``data`` is the new path of its file, None if it was not moved.
    """
    experiment = reopen(run, device, data=data)
    _, about = load_tensors(run.path / "model.safetensors")
    recorded = run.result()
    if recorded is None:
        ended, steps = "unfinished", max((line["step"] for line in run.metrics()), default=about["step"])
    else:
        ended, steps = recorded["ended"], recorded["steps"]
    return _result(experiment, run, Outcome(ended, steps, about["validation"], about["step"], 0.0))


def _result(experiment: Experiment, run: runs.Run, outcome: Outcome) -> dict[str, Any]:
    began = time.perf_counter()
    task_data = experiment.task_data
    metric = task_data.metric
    assessed = assess_network(
        run.load_model().to(experiment.device),
        task_data.test,
        Objective.of(task_data),
        task_data.encoding,
        batch_size=experiment.eval_batch_size,
        autocast=experiment.autocast,
    )
    if assessed["metrics"][metric] is None:
        raise UserError(f"{METRICS[metric].label} is not defined for the network in {run.path} on the test data")
    baselines = [
        {"name": b.name, "value": b.values[metric], "metrics": as_json(b.values)}
        for b in experiment.baselines
        if math.isfinite(b.values.get(metric, math.nan))
    ]
    names = {b["name"] for b in baselines}
    assessed["notes"] += [f"without a result: {b.name}" for b in experiment.baselines if b.name not in names]
    return {
        "run": str(run.path),
        "model": experiment.settings.model.model,
        "task": experiment.settings.data.task,
        "metric": metric,
        "test": assessed["metrics"][metric],
        **assessed,
        "validation": outcome.best,
        "best_step": outcome.best_step,
        "steps": outcome.step,
        "ended": outcome.how,
        "seconds": round(outcome.seconds, 2),
        "training_seconds": round(outcome.seconds - outcome.evaluation_seconds, 2),
        "evaluation_seconds": round(outcome.evaluation_seconds + time.perf_counter() - began, 2),
        "parameters": experiment.parameters,
        "test_examples": len(task_data.test.x),
        "baselines": baselines,
        "remark": tasks.entry(experiment.settings.data.task).caveat,
        "config": run.config["sha256"],
    }
