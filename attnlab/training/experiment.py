"""The data, the network and the device of a run, from its settings."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from attnlab import tasks
from attnlab.catalog import pattern, registry
from attnlab.network import Network
from attnlab.tasks.base import Baseline, TaskConfig, TaskData
from attnlab.training import hardware
from attnlab.training.distributed import ALONE, Processes
from attnlab.training.initial import draw_weights, initialize
from attnlab.training.objective import Objective, with_metric
from attnlab.training.paths import shown
from attnlab.training.runs import Run
from attnlab.training.settings import Settings, check, option_flags
from attnlab.utils.errors import UserError


@dataclass(frozen=True)
class Experiment:
    """Everything that a run needs, checked; nothing is written yet."""

    settings: Settings
    task_data: TaskData
    network: Network
    device: torch.device
    init_sha256: str | None = None
    """The hash of the file that ``init_from`` names."""

    @cached_property
    def baselines(self) -> list[Baseline]:
        """The baselines' metrics on the test data, computed once; a baseline that fails has no metrics."""
        try:
            return self.task_data.baselines()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # a library refuses unusual data
            return [Baseline(f"baselines ({' '.join(str(error).split())[:200]})", {})]

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def eval_batch_size(self) -> int:
        """The batch size of evaluation."""
        return max(self.settings.training.batch_size, 128)

    @property
    def autocast(self) -> AbstractContextManager[Any]:
        """The context of the forward passes."""
        return hardware.autocast(self.settings.hardware, self.device)


def prepare(settings: Settings, *, began: bool = False, processes: Processes = ALONE) -> Experiment:
    """Load the data and build the network; if the run ``began``, its checkpoint replaces ``init_from``."""
    check(settings)
    device = hardware.prepare(settings.hardware, processes)
    batch_size = settings.training.batch_size
    with hardware.memory_advice(batch_size):
        task_data = load_task_data(settings)
    Objective.of(task_data, settings.training.class_weight)  # refuses before anything is built
    with torch.device("meta"):  # only the shapes, to check the memory
        size = sum(p.numel() for p in build(settings, task_data).parameters())
    hardware.check_memory(size, settings.hardware.precision, device)
    hardware.set_threads(settings.hardware, size, task_data.train.x.shape[1] * batch_size)
    torch.manual_seed(settings.training.seed)
    with hardware.memory_advice(batch_size):
        network = build(settings, task_data).to(device)
        if settings.model.init_std is not None:
            draw_weights(network, settings.model.init_std)
        if settings.hardware.precision == "float64":
            network, task_data = network.double(), _double(task_data)
        init_sha256 = None
        if settings.training.init_from is not None and not began:
            init_sha256, lines = initialize(network, Path(settings.training.init_from), task_data.encoding)
            task_data = replace(task_data, summary_lines=(*task_data.summary_lines, *lines))
    return Experiment(settings, task_data, network, device, init_sha256)


def reopen(run: Run, device: str = "auto", *, data: Path | None = None) -> Experiment:
    """The data and the best network of a run; ``data`` is the new path of its file, None if it was not moved."""
    settings = run.settings
    settings.hardware.device = device
    if data is not None:
        settings.data.data = str(data)
    task_data = load_task_data(settings)
    check_same_data(run, task_data)
    if settings.hardware.precision == "float64":
        task_data = _double(task_data)
    resolved = hardware.prepare(settings.hardware)
    network = run.load_model()
    expected = (task_data.inputs, task_data.outputs, task_data.length)
    actual = (network.inputs, network.outputs, network.length)
    if actual != expected:
        raise UserError(
            f"{run.path} holds a network for {actual}, but its data have {expected}; restore it, or train again"
        )
    return Experiment(settings, task_data, network.to(resolved), resolved)


def load_task_data(settings: Settings) -> TaskData:
    """The data of the task at these settings."""
    data = settings.data
    config = TaskConfig(
        seed=settings.training.seed,
        val_fraction=data.val_fraction,
        seq_length=data.seq_length,
        test_length=data.test_length,
        pairs=data.pairs,
        vocabulary=data.vocabulary,
        noise=data.noise,
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
    """The network for the task; refuses a task that needs a capability that the mechanism lacks."""
    model, task = settings.model, settings.data.task
    cards = {name: registry.load(name).card for name in pattern.mechanisms(model.model)}
    causal = model.options.get("causal", False)
    for name, card in cards.items():
        if task_data.causal and "causal" not in card.supports:
            raise UserError(f"{task} needs causal attention, which {name} does not support; {_models_with('causal')}")
        if task_data.train.lengths is not None and "padding" not in card.supports:
            raise UserError(f"{task} needs a padding mask, which {name} does not support; {_models_with('padding')}")
    if task_data.causal and not causal:
        raise UserError(f"{task} predicts the next token, so the network must be causal: leave out --no_causal")
    if not causal and all(card.always_causal for card in cards.values()):
        raise UserError(f"{model.model} is always causal; leave out --no_causal")
    try:
        return Network(
            model=model.model,
            inputs=list(task_data.inputs),
            outputs=list(task_data.outputs),
            length=task_data.length,
            embed_dim=model.embed_dim,
            layers=model.layers,
            options=_network_options(settings),
            causal=causal,
            dropout=model.dropout,
            mlp=model.mlp,
            pool=task_data.pool,
            position_embedding=model.position_embedding,
            mlp_width=model.mlp_width,
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"{model.model}: {error}") from None


def _network_options(settings: Settings) -> dict[str, Any]:
    """The options as `Network` takes them: those of a pattern by mechanism; without ``causal``."""
    flags, options = option_flags(settings.model.model), {}
    for flag, value in settings.model.options.items():
        name, option = flags[flag]
        if flag == option.name:
            options[flag] = value
        else:
            options.setdefault(name, {})[option.name] = value
    options.pop("causal", None)
    return options


def check_same_data(run: Run, task_data: TaskData) -> None:
    """Refuse data that are encoded differently than when the run was started."""
    recorded, data = run.config["encoding"], run.config["settings"]["data"]
    now = json.loads(json.dumps(task_data.encoding))
    if same_values(now, recorded):
        return
    names = ", ".join(n for n in sorted({*now, *recorded}) if not same_values(now.get(n), recorded.get(n)))
    if data is None:
        source = tasks.load(run.config["settings"]["task"]).own_data
        raise UserError(
            f"{source} differs from the data that {run.path} was trained on (in {names}); use the version that it "
            "was trained with, or give --data"
        )
    raise UserError(
        f"{data} is encoded differently than when {run.path} was started (in {names}); use the version of attnlab "
        f"that it was trained with ({run.config['attnlab']})"
    )


def same_values(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal up to rounding differences between processors."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_values(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_values, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return type(a) is type(b) and a == b


def _double(task_data: TaskData) -> TaskData:
    return replace(task_data, **{n: getattr(task_data, n).double() for n in ("train", "validation", "test")})


def _models_with(capability: str) -> str:
    names = [name for name in registry.names() if capability in registry.entry(name).card.supports]
    return f"choose from: {', '.join(names)}"
