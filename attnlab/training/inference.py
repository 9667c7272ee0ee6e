"""Prediction and evaluation on new data with a trained network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnlab import tasks
from attnlab.network import Network
from attnlab.tasks._split import listed
from attnlab.tasks.base import UNSEEN, Split
from attnlab.training import hardware, records
from attnlab.training.assessment import as_json, assess_network, class_names, has_details
from attnlab.training.network_file import load_network
from attnlab.training.objective import Objective, predict
from attnlab.training.runs import Run
from attnlab.utils.errors import UserError


def load_with_encoding(path: Path, device: str = "auto") -> tuple[Network, dict[str, Any]]:
    """The network of a run folder or a file, and the description of its data."""
    if path.is_dir():
        Run.open(path).load_model()  # refuses files put together from two runs
        path = path / "model.safetensors"
    network, about = load_network(path, trained=True)
    return network.to(hardware.device(device)), about


@dataclass(frozen=True)
class Predictions:
    """Predictions for new data.

    ``columns`` hold one value per example; ``metrics`` are those of the ``scored`` rows with known targets, and None if
    the data hold no targets. ``encoding`` is that of the data that the network was trained on.
    """

    columns: dict[str, list[Any]]
    metrics: dict[str, float | None] | None
    scored: int
    encoding: dict[str, Any]


def predict_file(path: Path, data: Path, device: str = "auto") -> Predictions:
    """Predictions of the network at ``path`` (a run folder or a file) for the examples in ``data``."""
    network, about = load_with_encoding(path, device)
    scored: list[tuple[Split, Tensor]] = []

    def score(split: Split) -> Tensor:
        scores = predict(network.eval(), _in_precision_of(network, split), batch_size=128)
        scored[:] = [(split, scores)]  # a text is scored in many parts, but only other data hold targets
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
    """The result of the network at ``path`` on new data with targets; its training data are not read."""
    network, about = load_with_encoding(path, device)
    task, encoding = tasks.load(about["task"]), about["encoding"]
    with records.reading_encoding(path):
        split = task.read_labelled(data, network.inputs, network.length, encoding)
    split = _in_precision_of(network, split)
    labels = class_names(network.outputs, encoding)
    if labels is not None and (split.y == UNSEEN).any():
        row = int((split.y == UNSEEN).any(1).int().argmax()) + 1
        raise UserError(
            f"the target in row {row} of {data} is none of the classes that the network was trained on: "
            f"{listed(labels)}; leave the row out"
        )
    assessed = assess_network(network, split, Objective(about["metric"], about["unit"]), encoding)
    return {
        "run": str(path),
        "data": str(data),
        "model": network.to_config()["model"],
        "task": about["task"],
        "metric": about["metric"],
        "test": assessed["metrics"][about["metric"]],
        **assessed,
        "best_step": about["step"],
        "test_examples": len(split.x),
        "baselines": [],
        "remark": "",
    }


def _in_precision_of(network: Network, split: Split) -> Split:
    """A split with ``x`` in the network's precision."""
    if next(network.parameters()).dtype == torch.float64 and split.x.is_floating_point():
        return split._replace(x=split.x.double())
    return split
