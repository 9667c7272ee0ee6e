"""The network of a run folder, which may be untrusted, with an input that fits it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnlab import tasks
from attnlab.catalog import pattern
from attnlab.explore.example import with_defaults
from attnlab.explore.inputs import (
    Sequence,
    check_row,
    class_names,
    digit,
    validation_example,
)
from attnlab.explore.networks import changed, network_subject, one_line_errors, resolve_causal
from attnlab.explore.setup import Digit, RunNetwork, Source, TaskExample, Text
from attnlab.explore.setup import Upload as UploadInput
from attnlab.explore.shelf import Shelf
from attnlab.explore.subject import Subject
from attnlab.network import Network
from attnlab.network.received import check_options
from attnlab.tasks.base import Task, TaskData
from attnlab.training import records
from attnlab.training.experiment import check_same_data, load_task_data
from attnlab.training.runs import Run, check_data
from attnlab.utils.errors import UserError


def run_subject(source: RunNetwork, given: Text | TaskExample | Digit | UploadInput, shelf: Shelf) -> Subject:
    """The network of a run with an input.

    Raises:
        UserError: for an unknown or damaged run, an input of another kind than the run's, or options that change the
            shapes of the parameters.
    """
    run = shelf.run(source.run)
    network, notes = run_network(source, run, shelf)
    with records.reading_encoding(run.path / "config.json"):
        sequence = run_sequence(run, network, given, shelf)
    return network_subject(network, run.config["settings"]["model"], sequence, notes)


def run_network(source: RunNetwork, run: Run, shelf: Shelf) -> tuple[Network, tuple[str, ...]]:
    """The network of a run in eval mode, with the options of the source, and notes about them."""
    load = run.load_model if source.step is None else partial(run.load_snapshot, source.step)
    key = ("run", str(run.path), run.config["sha256"], source.step, version(source, shelf))
    network = shelf.keep(key, load)
    notes = [] if source.step is None else [f"a snapshot at step {source.step:,} of the run's training"]
    config = network.to_config()
    arguments: dict[str, Any] = {}
    if source.causal is not None and source.causal != config["causal"]:
        arguments["causal"] = resolve_causal(config["model"], source.causal)
        notes.append(f"it was trained with causal={config['causal']} and is shown with causal={source.causal}")
    if source.options:
        check_options(config["model"], source.options, "the network")
        arguments["options"] = (config["options"] or {}) | source.options
        _check_shapes(network, source.options, run.path)
        notes.append(f"shown with other options than in training: {', '.join(sorted(source.options))}")
    if arguments:
        altered = (*key, source.causal, repr(sorted(source.options.items())))
        network = shelf.keep(altered, partial(changed, network, arguments))
    return network, tuple(notes)


def version(source: Source, shelf: Shelf) -> str:
    """When the network of a run was written, because one in training is replaced by better ones; empty for others."""
    if not isinstance(source, RunNetwork) or source.run not in shelf.runs:
        return ""
    path = shelf.runs[source.run]
    try:
        run = Run.open(path)
        file = path / "model.safetensors" if source.step is None else run.snapshot_file(source.step)
        return f"{run.config['sha256']} {file.stat().st_mtime_ns}"
    except (UserError, OSError):  # reported where the network is loaded
        return ""


def run_options(run: Run) -> dict[str, Any]:
    """The options of the mechanism of a run, by name; none for a pattern of several."""
    config = run.config["network"]
    if len(pattern.mechanisms(config["model"])) > 1:
        return {}
    return (
        with_defaults(config["model"], {}, heads=None)
        | pattern.options_by_mechanism(config["model"], config["options"] or {})[config["model"]]
    )


def _check_shapes(network: Network, options: dict[str, Any], path: Path) -> None:
    """Refuse options with which the parameters would have other names or shapes."""
    config = network.to_config()
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for names in (*([name] for name in options), list(options)):  # one at a time, to name the first
        chosen = {name: options[name] for name in names}
        with one_line_errors(config["model"]), torch.device("meta"):
            made = Network(**config | {"options": (config["options"] or {}) | chosen})
        if {name: tensor.shape for name, tensor in made.state_dict().items()} != expected:
            raise UserError(
                f"{' and '.join(names)} changes the parameters of {path}; leave it as it was in training, or train "
                "another run"
            )


def accepted_inputs(run: Run) -> list[str]:
    """The kinds of input that fit the network of a run: an example of its task, and what its task can read."""
    name = task_name(run)
    accepted = ["task"]
    if run.config["network"]["inputs"][0] != "cells" and name != "text":
        accepted.append("upload")
    return accepted + {"text": ["text"], "digits": ["digit"]}.get(name, [])


def task_name(run: Run) -> str:
    """The current name of the task that a run was trained on."""
    return tasks.resolve(run.config["settings"]["task"])


def run_sequence(run: Run, network: Network, given: Text | TaskExample | Digit | UploadInput, shelf: Shelf) -> Sequence:
    """An input as the run's task encodes it."""
    name, encoding, accepted = task_name(run), run.config["encoding"], accepted_inputs(run)
    if given.kind not in accepted:
        raise UserError(
            f"{run.path} was trained on {name}; it takes the input {' or '.join(accepted)}, not {given.kind}"
        )
    task = tasks.load(name)
    match given:
        case TaskExample():
            if tasks.resolve(given.task or name) != name:
                raise UserError(f"{run.path} was trained on {name}; leave the task out, or choose {name}")
            if given.seed:
                raise UserError(f"the examples are the validation data of {run.path}; leave the seed at 0")
            data: TaskData = shelf.keep(("data", str(run.path), run.config["sha256"]), partial(_task_data, run))
            return validation_example(task, data, given.index)
        case Digit():
            if given.patch != "row":
                raise UserError(f"the tokens of {run.path} are rows of pixels, not {given.patch} patches; choose row")
            return digit(given)
        case UploadInput():
            x = _read_upload(task, network, given, encoding, shelf)
        case Text():
            x = torch.tensor(list(given.text.encode()))
    classes = class_names(task, network.inputs, network.outputs, encoding)
    return Sequence(x, tuple(task.token_labels(x, network.inputs, encoding)), network.inputs, network.outputs, classes)


def _read_upload(task: Task, network: Network, given: UploadInput, encoding: dict[str, Any], shelf: Shelf) -> Tensor:
    """A row of an upload as the task reads new data: checked against the network, and standardized as in training."""
    upload, row = shelf.uploads.get(given.key), check_row(given, shelf)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "upload.npz"
        np.savez(path, x=upload.x[row : row + 1])
        try:
            return task.read(path, network.inputs, network.length, encoding).x[0]
        except UserError as error:
            raise UserError(str(error).replace(str(path), upload.name)) from None


def _task_data(run: Run) -> TaskData:
    """The data that the run was trained on, if they are still the same."""
    check_data(run)
    data = load_task_data(run.settings)
    check_same_data(run, data)
    return data
