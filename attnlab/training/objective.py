"""What a network is trained for and judged by.

Axes: B batch, N length, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.network import Network
from attnlab.tasks.base import IGNORE, Split, TaskData
from attnlab.tasks.metrics import CLASS_METRICS, METRICS, VALUE_METRICS, class_metrics, value_metrics
from attnlab.utils.errors import UserError

ADDITIVE = {**dict.fromkeys(CLASS_METRICS, "accuracy"), **dict.fromkeys(VALUE_METRICS, "rmse")}
"""For each metric the one that can be summed example by example."""


@dataclass(frozen=True)
class Objective:
    """The loss to follow and the metric to report.

    Args:
        metric: a name in `attnlab.tasks.metrics.METRICS`.
        unit: the factor from the standardized targets back to the user's unit.
        class_weights: (C,) the weight of each class in the training loss; empty for equal weights.
    """

    metric: str
    unit: float = 1.0
    class_weights: tuple[float, ...] = ()

    @staticmethod
    def of(task_data: TaskData, class_weight: str | None = None) -> Objective:
        """The objective of a problem.

        Args:
            task_data: what is learned.
            class_weight: ``balanced`` weighs each class by the inverse of its frequency in the training data, as
                scikit-learn does.

        Raises:
            UserError: for ``class_weight`` where an example is not of one class.
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
        """Whether a larger metric is better, as accuracy is and errors are not."""
        return METRICS[self.metric].higher_is_better

    @property
    def of_values(self) -> bool:
        """Whether numbers are predicted, not classes."""
        return self.metric in VALUE_METRICS

    def additive(self) -> Objective:
        """The same with a metric that can be summed example by example: accuracy, rmse or bits per byte."""
        return replace(self, metric=ADDITIVE.get(self.metric, self.metric))

    def better(self, new: float, old: float | None) -> bool:
        """Whether ``new`` is strictly better than ``old``; NaN is never better, and any number is better than None."""
        if math.isnan(new):
            return False
        return old is None or (new > old if self.higher_is_better else new < old)

    def loss(self, scores: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of (..., C) scores, or the squared error of values; a scalar."""
        if self.of_values:
            return F.mse_loss(scores, y)
        weights = scores.new_tensor(self.class_weights) if self.class_weights else None
        return F.cross_entropy(scores.flatten(0, -2), y.flatten(), weight=weights, ignore_index=IGNORE)

    def total(self, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over a batch: of the loss, of what the metric averages, and how many were asked."""
        loss, hits, asked = self.each(scores, y)
        return loss.sum(), hits.sum(), asked.sum()

    def each(self, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same sums for each example by itself, (B,), for the additive metric and without class weights."""
        if self.of_values:
            squares = (scores - y).square().sum(1)
            return squares, squares, torch.full_like(squares, y.shape[1], dtype=torch.long)
        asked = y != IGNORE
        losses = F.cross_entropy(scores.flatten(0, -2), y.flatten(), ignore_index=IGNORE, reduction="none")
        loss = losses.view_as(y).sum(1)
        hits = loss if self.metric == "bits_per_byte" else ((scores.argmax(-1) == y) & asked).sum(1)
        return loss, hits, asked.sum(1)

    def measure(self, total: float, count: int) -> float:
        """The additive metric out of its sum."""
        mean = total / max(count, 1)
        if self.of_values:
            return math.sqrt(mean) * self.unit
        return mean / math.log(2) if self.metric == "bits_per_byte" else mean

    def metrics(self, scores: Tensor, y: Tensor) -> dict[str, float]:
        """Every metric of (B, 1, C) scores with (B, 1) classes, or of (B, 1) values, in the user's unit and float64."""
        target = y[:, 0].numpy()
        if not self.of_values:
            return class_metrics(scores[:, 0].double().softmax(-1).numpy(), target)
        values = value_metrics(scores[:, 0].double().numpy(), target.astype("float64"))
        return {name: value if name == "r2" else value * self.unit for name, value in values.items()}


def one_class_per_example(task_data: TaskData) -> bool:
    """Whether each example is of one class: then precision, recall and a confusion matrix mean something."""
    return task_data.outputs.kind == "classes" and task_data.outputs.slots == 1


def metrics_of(task_data: TaskData) -> tuple[str, ...]:
    """The metrics that a problem can be judged by."""
    if task_data.outputs.kind == "values":
        return VALUE_METRICS
    return CLASS_METRICS if one_class_per_example(task_data) else (task_data.metric,)


def with_metric(task_data: TaskData, metric: str | None) -> TaskData:
    """The problem, judged by ``metric``.

    Raises:
        UserError: for a metric that does not fit the problem, with those that do.
    """
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
) -> tuple[float, float]:
    """The mean loss and the metric over a split, with dropout off.

    The network is left in the mode it was in; no random number is drawn.
    """
    additive = objective.metric == objective.additive().metric
    loss, metric, count = 0.0, 0.0, 0
    kept = []
    for scores, y in _batches(network, split, batch_size, autocast):
        sums = objective.total(scores, y)
        loss, metric, count = loss + float(sums[0]), metric + float(sums[1]), count + int(sums[2])
        if not additive:
            kept.append((scores.cpu(), y.cpu()))
    if additive:
        return loss / max(count, 1), objective.measure(metric, count)
    scores, y = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return loss / max(count, 1), objective.metrics(scores, y)[objective.metric]


@torch.no_grad()
def score_all(
    network: Network, split: Split, *, batch_size: int, autocast: AbstractContextManager[Any] | None = None
) -> Tensor:
    """The network's scores for every example of a split that has targets, on the CPU, as `evaluate` computes them."""
    return torch.cat([scores.cpu() for scores, _ in _batches(network, split, batch_size, autocast)])


@torch.no_grad()
def predict(network: Network, split: Split, *, batch_size: int) -> Tensor:
    """The network's scores for every example of a split, on the CPU."""
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for i in range(0, max(1, len(split.x)), batch_size):  # no example at all is one empty batch
        lengths = None if split.lengths is None else split.lengths[i : i + batch_size].to(device)
        scores = network(split.x[i : i + batch_size].to(device), lengths)
        parts.append(scores.to(torch.promote_types(scores.dtype, torch.float32)).cpu())
    return torch.cat(parts)


def _batches(
    network: Network, split: Split, batch_size: int, autocast: AbstractContextManager[Any] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores in at least float32, and targets, batch by batch, in eval mode."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    for i in range(0, len(split.x), batch_size):
        x, y, lengths = (None if t is None else t[i : i + batch_size].to(device) for t in split)
        assert x is not None
        assert y is not None
        with autocast or nullcontext():
            scores = network(x, lengths)
        yield scores.to(torch.promote_types(scores.dtype, torch.float32)), y
    network.train(was_training)
