"""A whole run: prepare, train, and judge the best network once on the held-out test data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attnlab import registry, tasks
from attnlab.errors import UserError
from attnlab.network import Network
from attnlab.task import Problem, Request, Split
from attnlab.training import machine, records, runs
from attnlab.training.checkpoint import load_tensors
from attnlab.training.loop import Outcome, StoppedError, Trainer, Watcher, raising_signals
from attnlab.training.objective import Objective, evaluate, predict
from attnlab.training.settings import Settings, check


@dataclass(frozen=True)
class Prepared:
    """Everything that a run needs, checked; nothing is written yet."""

    settings: Settings
    problem: Problem
    network: Network
    device: torch.device

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.network.parameters())


def prepare(settings: Settings) -> Prepared:
    """Load the data and build the network.

    Raises:
        UserError: anything that the settings ask for and that cannot be.
    """
    check(settings)
    device = machine.prepare(settings.machine)
    with machine.memory_advice(settings.training.batch_size):
        problem = load_problem(settings)
    with torch.device("meta"):  # shapes alone, to find out what it will take
        size = sum(p.numel() for p in build(settings, problem).parameters())
    machine.check_memory(size, settings.machine.precision, device)
    machine.set_threads(settings.machine, size, problem.train.x.shape[1] * settings.training.batch_size)
    torch.manual_seed(settings.training.seed)
    with machine.memory_advice(settings.training.batch_size):
        network = build(settings, problem).to(device)
        if settings.machine.precision == "float64":
            network, problem = network.double(), _double(problem)
    return Prepared(settings, problem, network, device)


def load_problem(settings: Settings) -> Problem:
    """The task's data at these settings.

    Raises:
        UserError: when the task cannot make them.
    """
    data = settings.data
    request = Request(
        seed=settings.training.seed,
        val_fraction=data.val_fraction,
        seq_length=data.seq_length,
        data=None if data.data is None else Path(data.data),
        target=data.target,
        target_type=data.target_type,
        features=None if data.features is None else tuple(data.features),
        ignore=tuple(data.ignore or ()),
        missing=data.missing,
        split_by=data.split_by,
    )
    return tasks.load(data.task).load(request)


def build(settings: Settings, problem: Problem) -> Network:
    """The network for a problem.

    Raises:
        UserError: an option that the mechanism refuses, or a problem that it cannot serve.
    """
    model, task = settings.model, settings.data.task
    mechanism = registry.load(model.model)
    options = dict(model.options)
    causal = options.pop("causal", False)
    if problem.causal and "causal" not in mechanism.card.supports:
        raise UserError(f"{model.model} cannot look back only, which {task} needs; {_those_with('causal')}")
    if problem.causal and not causal:
        raise UserError(f"{task} asks for what comes next, so the model must not look ahead: leave out --no_causal")
    if problem.train.lengths is not None and "mask" not in mechanism.card.supports:
        raise UserError(f"{model.model} takes no mask, which {task} needs for its padding; {_those_with('mask')}")
    try:
        return Network(
            model=model.model,
            inputs=list(problem.inputs),
            outputs=list(problem.outputs),
            length=problem.length,
            embed_dim=model.embed_dim,
            layers=model.layers,
            options=options,
            causal=causal,
            dropout=model.dropout,
            mlp=model.mlp,
            pool=problem.pool,
            position_embedding=model.position_embedding,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"{model.model}: {error}") from None


def start(prepared: Prepared, path: Path | None, *, overwrite: bool = False) -> runs.Run:
    """Make the run's folder."""
    config = runs.make_config(prepared.settings, prepared.network, prepared.problem, torch.get_num_threads())
    return runs.Run.create(path, config, overwrite=overwrite)


def train(
    prepared: Prepared,
    run: runs.Run,
    *,
    resume: bool = False,
    checkpoint_seconds: float = 10.0,
    watch: Watcher | None = None,
    on_end: Callable[[], None] | None = None,
) -> tuple[Outcome, dict[str, Any] | None]:
    """Train, then judge.

    Args:
        prepared: what to train.
        run: its folder.
        resume: take up from the folder's last checkpoint.
        checkpoint_seconds: the time between checkpoints.
        watch: is told of the progress.
        on_end: is called between training and judging.

    Returns:
        How training ended, and the result (see `judge`), None where a signal stopped training or judging.

    Raises:
        StoppedError: a second signal while training stops.
    """
    with machine.memory_advice(prepared.settings.training.batch_size), run.alone(), raising_signals():
        trainer = Trainer(
            prepared.network, prepared.problem, prepared.settings, run, checkpoint_seconds=checkpoint_seconds
        )
        if resume:
            trainer.restore()
        outcome = trainer.fit(watch)
        if on_end is not None:
            on_end()
        if outcome.how == "stopped":
            return outcome, None
        try:
            return outcome, judge(prepared, run, outcome)
        except StoppedError as stop:
            return replace(outcome, how="stopped", signal=stop.signal), None


def judge(prepared: Prepared, run: runs.Run, outcome: Outcome) -> dict[str, Any]:
    """The best network's result on the test data, beside the baselines; written into the run's folder.

    Raises:
        UserError: when training never reached a network worth keeping.
    """
    from attnlab.training.report import write_report

    if outcome.best is None:
        raise UserError(f"no evaluation gave a number, so {run.path} holds no network; try a lower --learning_rate")
    result = _result(prepared, run, outcome)
    write_report(run, result)
    # Last, so that a run with a result has everything else too.
    run.write_result(result)
    return result


def evaluate_run(run: runs.Run, device: str = "auto") -> dict[str, Any]:
    """A run's result, computed again from its data and its best network.

    Raises:
        UserError: a run that holds no network yet, or is damaged.
    """
    prepared = reopen(run, device)
    _, about = load_tensors(run.path / "model.safetensors")
    steps = max((line["step"] for line in run.metrics()), default=about["step"])
    outcome = Outcome("finished", steps, about["validation"], about["step"], 0.0)
    return _result(prepared, run, outcome)


def reopen(run: runs.Run, device: str = "auto") -> Prepared:
    """A run's data and its best network, as they were.

    Raises:
        UserError: a run that holds no network yet, or is damaged.
    """
    settings = run.settings
    settings.machine.device = device
    problem = load_problem(settings)
    if settings.machine.precision == "float64":
        problem = _double(problem)
    place = machine.prepare(settings.machine)
    network = run.load_model()
    records.check_fit(network, problem, run.path)
    return Prepared(settings, problem, network.to(place), place)


def load_with_encoding(path: Path, device: str = "auto") -> tuple[Network, dict[str, Any]]:
    """A network, from a run's folder or a file, and how its data were encoded.

    Raises:
        UserError: when there is none, or it is damaged.
    """
    if path.is_dir():
        runs.Run.open(path).load_model()  # refuses files put together from two runs
        path = path / "model.safetensors"
    network, about = runs.load_network(path, trained=True)
    return network.to(machine.device(device)), about


def predict_file(path: Path, data: Path, device: str = "auto") -> dict[str, list[Any]]:
    """The answers of the network at ``path`` for the examples in ``data``: columns of one value per example.

    Raises:
        UserError: data that do not fit what the network was trained on.
    """
    network, about = load_with_encoding(path, device)
    task = tasks.load(about["task"])
    with records.reading_encoding(path):
        split = task.read(data, network.inputs, network.length, about["encoding"])
    if next(network.parameters()).dtype == torch.float64 and split.x.is_floating_point():
        split = split._replace(x=split.x.double())
    with records.reading_encoding(path):
        scores = predict(network, split, batch_size=128)
        return task.answers(network.outputs, scores, split, about["encoding"])


def _result(prepared: Prepared, run: runs.Run, outcome: Outcome) -> dict[str, Any]:
    metric, loss = _test(run, prepared)
    chosen = prepared.problem.metric
    baselines = [{"name": b.name, "value": b.values[chosen], "metrics": b.values} for b in prepared.problem.baselines()]
    return {
        "run": str(run.path),
        "model": prepared.settings.model.model,
        "task": prepared.settings.data.task,
        "metric": prepared.problem.metric,
        "test": metric,
        "test_loss": loss,
        "validation": outcome.best,
        "best_step": outcome.best_step,
        "steps": outcome.step,
        "ended": outcome.how,
        "seconds": round(outcome.seconds, 2),
        "parameters": prepared.parameters,
        "test_examples": len(prepared.problem.test.x),
        "baselines": baselines,
        "remark": tasks.entry(prepared.settings.data.task).remark,
    }


def _test(run: runs.Run, prepared: Prepared) -> tuple[float, float]:
    """The metric and the loss of a run's best network on the test data."""
    network = run.load_model().to(prepared.device)
    loss, metric = evaluate(
        network,
        prepared.problem.test,
        Objective.of(prepared.problem),
        batch_size=max(prepared.settings.training.batch_size, 128),
        autocast=machine.autocast(prepared.settings.machine, prepared.device),
    )
    if not math.isfinite(metric):
        raise UserError(f"the network in {run.path} gives {metric} on the test data")
    return metric, loss


def _double(problem: Problem) -> Problem:
    def cast(split: Split) -> Split:
        x, y, lengths = split
        return Split(x.double() if x.is_floating_point() else x, y.double() if y.is_floating_point() else y, lengths)

    return replace(problem, train=cast(problem.train), validation=cast(problem.validation), test=cast(problem.test))


def _those_with(capability: str) -> str:
    able = [name for name in registry.names() if capability in registry.entry(name).card.supports]
    return f"these can: {', '.join(able)}"
