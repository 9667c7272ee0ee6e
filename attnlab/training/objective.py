"""The training loss, the metrics, and evaluation of a network on a split.

Axes: B batch, N length, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.network import Network
from attnlab.tasks.base import IGNORE, Split, TaskData
from attnlab.tasks.metrics import CLASS_METRICS, METRICS, VALUE_METRICS, class_metrics, value_metrics
from attnlab.training.distributed import ALONE, Processes
from attnlab.utils.errors import UserError

ADDITIVE = {**dict.fromkeys(CLASS_METRICS, "accuracy"), **dict.fromkeys(VALUE_METRICS, "rmse")}
"""For each metric the related one that is a mean over examples."""


@dataclass(frozen=True)
class Objective:
    """The training loss and the reported metric.

    Args:
        metric: a name in `attnlab.tasks.metrics.METRICS`.
        unit: the factor from standardized targets to the user's unit.
        class_weights: (C,) the weight of each class in the training loss; empty for equal weights.
    """

    metric: str
    unit: float = 1.0
    class_weights: tuple[float, ...] = ()

    @staticmethod
    def of(task_data: TaskData, class_weight: str | None = None) -> Objective:
        """The objective of a task; the ``class_weight`` ``balanced`` is for data with one class per example.

        It weights each class by the inverse of its frequency in the training data, as in scikit-learn.
        """
        if class_weight is None:
            return Objective(task_data.metric, task_data.unit)
        if not one_class_per_example(task_data):
            raise UserError("--class_weight is for data with one class per example; leave it out")
        counts = torch.bincount(task_data.train.y[:, 0], minlength=task_data.outputs.size).double()
        weights = len(task_data.train.y) / (len(counts) * counts)
        return Objective(task_data.metric, task_data.unit, tuple(weights.tolist()))

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger metric is better, as for accuracy."""
        return METRICS[self.metric].higher_is_better

    @property
    def of_values(self) -> bool:
        """Whether the task is regression."""
        return self.metric in VALUE_METRICS

    def additive(self) -> Objective:
        """The same with a metric that is a mean over examples: accuracy, rmse or bits per byte."""
        return replace(self, metric=ADDITIVE.get(self.metric, self.metric))

    def better(self, new: float, old: float | None) -> bool:
        """Whether ``new`` is strictly better than ``old``; NaN is never better, and any value is better than None."""
        if math.isnan(new):
            return False
        return old is None or (new > old if self.higher_is_better else new < old)

    def loss(self, scores: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy of (..., C) scores, or the squared error of values: a scalar, the ``mean`` or the ``sum``."""
        if self.of_values:
            return F.mse_loss(scores, y, reduction=reduction)
        weights = scores.new_tensor(self.class_weights) if self.class_weights else None
        return F.cross_entropy(
            scores.flatten(0, -2), y.flatten(), weight=weights, ignore_index=IGNORE, reduction=reduction
        )

    def weight(self, y: Tensor) -> Tensor:
        """The sum of the losses of these targets divided by their mean, in float64: their number or total weight."""
        if self.of_values:
            return torch.tensor(y.numel(), dtype=torch.float64, device=y.device)
        targets = y[y != IGNORE]
        if self.class_weights:
            return torch.tensor(self.class_weights, dtype=torch.float64, device=y.device)[targets].sum()
        return torch.tensor(targets.numel(), dtype=torch.float64, device=y.device)

    def each(self, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each example (B,): the sum of its losses, the sum of its metric, and its number of targets.

        The metric is additive, and the loss has no class weights.
        """
        if self.of_values:
            squares = (scores - y).square().sum(1)
            return squares, squares, torch.full_like(squares, y.shape[1], dtype=torch.long)
        targets = y != IGNORE
        losses = F.cross_entropy(scores.flatten(0, -2), y.flatten(), ignore_index=IGNORE, reduction="none")
        loss = losses.view_as(y).sum(1)
        hits = loss if self.metric == "bits_per_byte" else ((scores.argmax(-1) == y) & targets).sum(1)
        return loss, hits, targets.sum(1)

    def measure(self, total: Any, count: Any) -> Any:
        """The additive metric from its sum and the number of targets, both numbers or arrays."""
        mean = total / np.maximum(count, 1)
        if self.of_values:
            return np.sqrt(mean) * self.unit
        return mean / math.log(2) if self.metric == "bits_per_byte" else mean

    def metrics(self, scores: Tensor, y: Tensor) -> dict[str, float]:
        """Every metric of (B, 1, C) scores with (B, 1) classes, or of (B, 1) values, in the user's unit and float64."""
        target = y[:, 0].numpy()
        if not self.of_values:
            return class_metrics(scores[:, 0].double().softmax(-1).numpy(), target)
        values = value_metrics(scores[:, 0].double().numpy(), target.astype("float64"))
        return {name: value if name == "r2" else value * self.unit for name, value in values.items()}


def one_class_per_example(task_data: TaskData) -> bool:
    """Whether each example has one class, so that precision, recall and a confusion matrix are defined."""
    return task_data.outputs.kind == "classes" and task_data.outputs.slots == 1


def metrics_of(task_data: TaskData) -> tuple[str, ...]:
    """The metrics that are defined for a task."""
    if task_data.outputs.kind == "values":
        return VALUE_METRICS
    return CLASS_METRICS if one_class_per_example(task_data) else (task_data.metric,)


def with_metric(task_data: TaskData, metric: str | None) -> TaskData:
    """The task data with ``metric``, which must be defined for them, in place of the default metric."""
    if metric is None or metric == task_data.metric:
        return task_data
    if metric not in metrics_of(task_data):
        raise UserError(f"--metric {metric} cannot be computed here; choose from {', '.join(metrics_of(task_data))}")
    return replace(task_data, metric=metric)


@torch.no_grad()
def evaluate(
    network: Network,
    split: Split,
    objective: Objective,
    *,
    batch_size: int,
    autocast: AbstractContextManager[Any] | None = None,
    processes: Processes = ALONE,
) -> tuple[float, float]:
    """The mean loss and the metric on a split, in eval mode; each of the ``processes`` evaluates a part.

    The network's mode is restored, and no random number is drawn.
    """
    additive = objective.metric == objective.additive().metric
    loss, metric, count = 0.0, 0.0, 0
    kept = []
    part, most = split.take(processes.part(len(split.x))), processes.longest_part(len(split.x))
    for scores, y in score_batches(network, part, batch_size, autocast, most):
        sums = [part.sum() for part in objective.each(scores, y)]
        loss, metric, count = loss + float(sums[0]), metric + float(sums[1]), count + int(sums[2])
        if not additive:
            kept.append((scores.cpu(), y.cpu()))
    loss, metric, count = (sum(each) for each in zip(*processes.exchange([loss, metric, count]), strict=True))
    if additive:
        return loss / max(count, 1), float(objective.measure(metric, count))
    scores, y = processes.concatenate([torch.cat(parts) for parts in zip(*kept, strict=True)])
    return loss / max(count, 1), objective.metrics(scores, y)[objective.metric]


@torch.no_grad()
def predict(
    network: Network, split: Split, *, batch_size: int, autocast: AbstractContextManager[Any] | None = None
) -> Tensor:
    """The network's scores for every example of a split, with or without targets, on the CPU."""
    return torch.cat([scores.cpu() for scores, _ in score_batches(network, split, batch_size, autocast)])


def score_batches(
    network: Network,
    split: Split,
    batch_size: int,
    autocast: AbstractContextManager[Any] | None = None,
    most: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores in at least float32 and the targets of each batch (see `batches`), in eval mode."""
    with eval_mode(network):
        for x, y, lengths in batches(network, split, batch_size, most):
            with autocast or nullcontext():
                scores = network(x, lengths)
            yield scores.to(torch.promote_types(scores.dtype, torch.float32)), y


def batches(network: Network, split: Split, batch_size: int, most: int = 1) -> Iterator[Split]:
    """A split in batches on the network's device, and empty batches until there are those of ``most`` examples.

    The processes of a sharded network need the same number of batches.
    """
    device = next(network.parameters()).device
    for i in range(0, max(most, len(split.x)), batch_size):
        yield split.take(slice(i, i + batch_size)).to(device)


@contextmanager
def eval_mode(network: Network) -> Iterator[None]:
    """Eval mode inside the context; the network's mode is restored after it."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
