"""A whole run: prepare, train, and judge the best network once on the held-out test data."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnlab import tasks
from attnlab.catalog import registry
from attnlab.network import Network
from attnlab.tasks._split import listed
from attnlab.tasks.base import UNSEEN, Baseline, Split, TaskConfig, TaskData
from attnlab.tasks.metrics import METRICS
from attnlab.training import hardware, records, runs
from attnlab.training.assessment import as_json, assess, has_details, names_of
from attnlab.training.checkpoint import load_tensors
from attnlab.training.extension import extend, extends
from attnlab.training.initial import initialize
from attnlab.training.loop import Callback, Outcome, StoppedError, Trainer, raising_signals
from attnlab.training.objective import Objective, evaluate, predict, score_all, with_metric
from attnlab.training.paths import shown
from attnlab.training.settings import Settings, check
from attnlab.utils.errors import UserError


@dataclass(frozen=True)
class Experiment:
    """Everything that a run needs, checked; nothing is written yet."""

    settings: Settings
    task_data: TaskData
    network: Network
    device: torch.device
    init_sha256: str | None = None
    """The hash of the file that the first weights are from, where ``init_from`` names one."""

    @cached_property
    def baselines(self) -> list[Baseline]:
        """The baselines' metrics on the test data, computed once; one that fails is named, and costs nothing else."""
        try:
            return self.task_data.baselines()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a library's refusal of unusual data
            return [Baseline(f"baselines ({' '.join(str(error).split())[:200]})", {})]

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.network.parameters())


def prepare(settings: Settings, *, began: bool = False) -> Experiment:
    """Load the data and build the network.

    Args:
        settings: what to train, and how.
        began: whether a checkpoint will replace the first weights, so that those of ``init_from`` are not needed.

    Raises:
        UserError: anything that the settings ask for and that cannot be.
    """
    check(settings)
    device = hardware.prepare(settings.hardware)
    with hardware.memory_advice(settings.training.batch_size):
        task_data = load_problem(settings)
    Objective.of(task_data, settings.training.class_weight)  # refuses before anything is built
    with torch.device("meta"):  # shapes alone, to find out what it will take
        size = sum(p.numel() for p in build(settings, task_data).parameters())
    hardware.check_memory(size, settings.hardware.precision, device)
    hardware.set_threads(settings.hardware, size, task_data.train.x.shape[1] * settings.training.batch_size)
    torch.manual_seed(settings.training.seed)
    with hardware.memory_advice(settings.training.batch_size):
        network = build(settings, task_data).to(device)
        if settings.hardware.precision == "float64":
            network, task_data = network.double(), _double(task_data)
        init_sha256 = None
        if settings.training.init_from is not None and not began:
            init_sha256, lines = initialize(network, Path(settings.training.init_from), task_data.encoding)
            task_data = replace(task_data, summary_lines=(*task_data.summary_lines, *lines))
    return Experiment(settings, task_data, network, device, init_sha256)


def load_problem(settings: Settings) -> TaskData:
    """The task's data at these settings.

    Raises:
        UserError: when the task cannot make them.
    """
    data = settings.data
    config = TaskConfig(
        seed=settings.training.seed,
        val_fraction=data.val_fraction,
        seq_length=data.seq_length,
        data=None if data.data is None else shown(data.data),
        target=data.target,
        target_type=data.target_type,
        features=None if data.features is None else tuple(data.features),
        ignore=tuple(data.ignore or ()),
        missing=data.missing,
        split_by=data.split_by,
        header=data.header,
    )
    return with_metric(tasks.load(data.task).load(config), settings.training.metric)


def build(settings: Settings, task_data: TaskData) -> Network:
    """The network for a problem.

    Raises:
        UserError: an option that the mechanism refuses, or a problem that it cannot serve.
    """
    model, task = settings.model, settings.data.task
    mechanism = registry.load(model.model)
    options = dict(model.options)
    causal = options.pop("causal", False)
    if task_data.causal and "causal" not in mechanism.card.supports:
        raise UserError(f"{model.model} cannot look back only, which {task} needs; {_those_with('causal')}")
    if task_data.causal and not causal:
        raise UserError(f"{task} asks for what comes next, so the model must not look ahead: leave out --no_causal")
    if task_data.train.lengths is not None and "padding" not in mechanism.card.supports:
        raise UserError(f"{model.model} takes no padding mask, which {task} needs; {_those_with('padding')}")
    try:
        return Network(
            model=model.model,
            inputs=list(task_data.inputs),
            outputs=list(task_data.outputs),
            length=task_data.length,
            embed_dim=model.embed_dim,
            layers=model.layers,
            options=options,
            causal=causal,
            dropout=model.dropout,
            mlp=model.mlp,
            pool=task_data.pool,
            position_embedding=model.position_embedding,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"{model.model}: {error}") from None


def start(experiment: Experiment, path: Path | None, *, overwrite: bool = False) -> runs.Run:
    """Make the run's folder."""
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
) -> tuple[Outcome, dict[str, Any] | None]:
    """Train, then judge.

    Args:
        experiment: what to train.
        run: its folder.
        resume: take up from the folder's last checkpoint; where ``experiment`` has more epochs or steps than the run,
            extend it.
        checkpoint_seconds: the time between checkpoints.
        callback: called with the `Progress` of training.
        on_end: is called between training and judging.

    Returns:
        How training ended, and the result (see `evaluate_test`), None where a signal stopped training or judging.

    Raises:
        StoppedError: a second signal while training stops.
    """
    with hardware.memory_advice(experiment.settings.training.batch_size), run.alone(), raising_signals():
        if resume:
            check_same_data(run, experiment.task_data)
        if extends(run, experiment.settings):
            run = extend(run, experiment.settings)
        trainer = Trainer(
            experiment.network, experiment.task_data, experiment.settings, run, checkpoint_seconds=checkpoint_seconds
        )
        if resume:
            trainer.restore()
        outcome = trainer.fit(callback)
        if on_end is not None:
            on_end()
        if outcome.how == "stopped":
            return outcome, None
        try:
            return outcome, evaluate_test(experiment, run, outcome)
        except StoppedError as stop:
            return replace(outcome, how="stopped", signal=stop.signal), None


def evaluate_test(experiment: Experiment, run: runs.Run, outcome: Outcome) -> dict[str, Any]:
    """The best network's result on the test data, beside the baselines; written into the run's folder.

    Raises:
        UserError: when training never reached a network worth keeping.
    """
    from attnlab.training.report import write_report

    if outcome.best is None:
        raise UserError(f"no evaluation gave a number, so {run.path} holds no network; try a lower --learning_rate")
    result = _result(experiment, run, outcome)
    write_report(run, result)
    # Last, so that a run with a result has everything else too.
    run.write_result(result)
    return result


def evaluate_run(run: runs.Run, device: str = "auto", *, data: Path | None = None) -> dict[str, Any]:
    """A run's result, computed again from its data and its best network.

    ``ended`` is how the run ended, ``finished`` or ``early``, and ``unfinished`` where training has not ended.
    ``data`` is where its file is now, None where it was.

    Raises:
        UserError: a run that holds no network yet, or is damaged.
    """
    experiment = reopen(run, device, data=data)
    _, about = load_tensors(run.path / "model.safetensors")
    recorded = run.result()
    if recorded is None:
        ended, steps = "unfinished", max((line["step"] for line in run.metrics()), default=about["step"])
    else:
        ended, steps = recorded["ended"], recorded["steps"]
    outcome = Outcome(ended, steps, about["validation"], about["step"], 0.0)
    return _result(experiment, run, outcome)


def reopen(run: runs.Run, device: str = "auto", *, data: Path | None = None) -> Experiment:
    """A run's data and its best network, as they were; ``data`` is where its file is now, None where it was.

    Raises:
        UserError: a run that holds no network yet, or is damaged.
    """
    settings = run.settings
    settings.hardware.device = device
    if data is not None:
        settings.data.data = str(data)
    task_data = load_problem(settings)
    check_same_data(run, task_data)
    if settings.hardware.precision == "float64":
        task_data = _double(task_data)
    place = hardware.prepare(settings.hardware)
    network = run.load_model()
    records.check_fit(network, task_data, run.path)
    return Experiment(settings, task_data, network.to(place), place)


def check_same_data(run: runs.Run, task_data: TaskData) -> None:
    """Refuse data that are understood otherwise than when the run was started.

    Raises:
        UserError: with what differs.
    """
    recorded, data = run.config["encoding"], run.config["settings"]["data"]
    now = json.loads(json.dumps(task_data.encoding))
    if same_values(now, recorded):
        return
    names = ", ".join(n for n in sorted({*now, *recorded}) if not same_values(now.get(n), recorded.get(n)))
    if data is None:
        source = tasks.load(run.config["settings"]["task"]).own_data
        raise UserError(
            f"{source} differs from the data that {run.path} was trained on (other {names}); use the version that it "
            "was trained with, or give --data"
        )
    raise UserError(
        f"{data} is understood otherwise than when {run.path} was started (other {names}); use the version of attnlab "
        f"that it was trained with ({run.config['attnlab']})"
    )


def same_values(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal, numbers within what another processor may round otherwise."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_values(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_values, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return type(a) is type(b) and a == b


def load_with_encoding(path: Path, device: str = "auto") -> tuple[Network, dict[str, Any]]:
    """A network, from a run's folder or a file, and how its data were encoded.

    Raises:
        UserError: when there is none, or it is damaged.
    """
    if path.is_dir():
        runs.Run.open(path).load_model()  # refuses files put together from two runs
        path = path / "model.safetensors"
    network, about = runs.load_network(path, trained=True)
    return network.to(hardware.device(device)), about


@dataclass(frozen=True)
class Predictions:
    """Answers for new data.

    ``columns`` hold one value per example; ``metrics`` are those on the rows whose targets the data hold, ``scored``
    of them, and None where there are none. ``encoding`` is that of the data that the network was trained on.
    """

    columns: dict[str, list[Any]]
    metrics: dict[str, float | None] | None
    scored: int
    encoding: dict[str, Any]


def predict_file(path: Path, data: Path, device: str = "auto") -> Predictions:
    """The answers of the network at ``path`` (a run's folder or a file) for the examples in ``data``.

    Raises:
        UserError: data that do not fit what the network was trained on.
    """
    network, about = load_with_encoding(path, device)
    scored: list[tuple[Split, Tensor]] = []

    def score(split: Split) -> Tensor:
        scores = predict(network, _as_trained(network, split), batch_size=128)
        scored[:] = [(split, scores)]  # a text is scored in many parts, and only rows of the others hold targets
        return scores

    with records.reading_encoding(path):
        columns = tasks.load(about["task"]).predict(network, data, about["encoding"], score)
    split, scores = scored[-1]
    if not split.y.numel() or not has_details(network.outputs, len(split.x)):
        return Predictions(columns, None, 0, about["encoding"])
    known = ~split.y[:, 0].isnan() if network.outputs.kind == "values" else split.y[:, 0] != UNSEEN
    metrics = Objective(about["metric"], about["unit"]).metrics(scores[known], split.y[known]) if known.any() else {}
    return Predictions(columns, as_json(metrics), int(known.sum()), about["encoding"])


def evaluate_file(path: Path, data: Path, device: str = "auto") -> dict[str, Any]:
    """The result of the network at ``path`` on new data that hold the targets; the data it was trained on are not read.

    Raises:
        UserError: data that do not fit, lack the target, or hold a class that training did not know.
    """
    network, about = load_with_encoding(path, device)
    task, encoding = tasks.load(about["task"]), about["encoding"]
    with records.reading_encoding(path):
        split = _as_trained(network, task.read_labelled(data, network.inputs, network.length, encoding))
    labels, objective = names_of(network.outputs, encoding), Objective(about["metric"], about["unit"])
    if labels is not None and (split.y == UNSEEN).any():
        row = int((split.y == UNSEEN).any(1).int().argmax()) + 1
        raise UserError(
            f"the target in row {row} of {data} is none of the classes that the network was trained on: "
            f"{listed(labels)}; leave the row out"
        )
    if has_details(network.outputs, len(split.x)):
        scores = score_all(network, split, batch_size=128)
        found = {"test_loss": _loss(objective, scores, split.y), **assess(scores, split.y, objective, labels)}
    else:
        loss, metric = evaluate(network, split, objective, batch_size=128)
        found = {"test_loss": loss, "metrics": as_json({about["metric"]: metric}), "notes": []}
    return {
        "run": str(path),
        "data": str(data),
        "model": network.to_config()["model"],
        "task": about["task"],
        "metric": about["metric"],
        "test": found["metrics"][about["metric"]],
        **found,
        "best_step": about["step"],
        "test_examples": len(split.x),
        "baselines": [],
        "remark": "",
    }


def _loss(objective: Objective, scores: Tensor, y: Tensor) -> float:
    """The mean loss per example."""
    return float(objective.each(scores, y)[0].double().mean())


def _as_trained(network: Network, split: Split) -> Split:
    """A split in the network's own precision."""
    if next(network.parameters()).dtype == torch.float64 and split.x.is_floating_point():
        return split._replace(x=split.x.double())
    return split


def _result(experiment: Experiment, run: runs.Run, outcome: Outcome) -> dict[str, Any]:
    began = time.perf_counter()
    task_data = experiment.task_data
    assessed = _assessed(run, experiment)
    metrics = assessed["metrics"]
    baselines = [
        {"name": b.name, "value": b.values[task_data.metric], "metrics": as_json(b.values)}
        for b in experiment.baselines
        if math.isfinite(b.values.get(task_data.metric, math.nan))
    ]
    compared = {b["name"] for b in baselines}
    assessed["notes"] += [f"without a result: {b.name}" for b in experiment.baselines if b.name not in compared]
    return {
        "run": str(run.path),
        "model": experiment.settings.model.model,
        "task": experiment.settings.data.task,
        "metric": task_data.metric,
        "test": metrics[task_data.metric],
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


def _assessed(run: runs.Run, experiment: Experiment) -> dict[str, Any]:
    """The loss and the metrics of a run's best network on the test data."""
    network, task_data = run.load_model().to(experiment.device), experiment.task_data
    objective = Objective.of(task_data)
    batch_size = max(experiment.settings.training.batch_size, 128)
    autocast = hardware.autocast(experiment.settings.hardware, experiment.device)
    if has_details(task_data.outputs, len(task_data.test.x)):
        scores = score_all(network, task_data.test, batch_size=batch_size, autocast=autocast)
        labels = names_of(task_data.outputs, task_data.encoding)
        y = task_data.test.y
        found = {"test_loss": _loss(objective, scores, y), **assess(scores, y, objective, labels)}
    else:
        loss, metric = evaluate(network, task_data.test, objective, batch_size=batch_size, autocast=autocast)
        found = {"test_loss": loss, "metrics": as_json({task_data.metric: metric}), "notes": []}
    if found["metrics"][task_data.metric] is None:
        raise UserError(
            f"{METRICS[task_data.metric].label} is not defined for the network in {run.path} on the test data"
        )
    return found


def _double(task_data: TaskData) -> TaskData:
    def cast(split: Split) -> Split:
        x, y, lengths = split
        return Split(x.double() if x.is_floating_point() else x, y.double() if y.is_floating_point() else y, lengths)

    return replace(
        task_data, train=cast(task_data.train), validation=cast(task_data.validation), test=cast(task_data.test)
    )


def _those_with(capability: str) -> str:
    able = [name for name in registry.names() if capability in registry.entry(name).card.supports]
    return f"these can: {', '.join(able)}"
