"""What a network is trained for and judged by.

Axes: B batch, N length, C classes.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.network import Network
from attnlab.task import IGNORE, Problem, Split

UNITS = {"accuracy": "accuracy", "bits_per_byte": "bits per byte", "rmse": "root mean squared error"}


@dataclass(frozen=True)
class Objective:
    """The loss to follow and the metric to report."""

    metric: str
    unit: float = 1.0

    @staticmethod
    def of(problem: Problem) -> Objective:
        """The objective that a problem asks for."""
        return Objective(problem.metric, problem.unit)

    @property
    def higher_is_better(self) -> bool:
        """Accuracy wants up, errors want down."""
        return self.metric == "accuracy"

    def better(self, new: float, old: float | None) -> bool:
        """Whether ``new`` is strictly better than ``old``; NaN is never better, and any number is better than None."""
        if math.isnan(new):
            return False
        return old is None or (new > old if self.higher_is_better else new < old)

    def loss(self, scores: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of (..., C) scores, or the squared error of values; a scalar."""
        if self.metric == "rmse":
            return F.mse_loss(scores, y)
        return F.cross_entropy(scores.flatten(0, -2), y.flatten(), ignore_index=IGNORE)

    def total(self, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums over a batch: of the loss, of what the metric averages, and how many were asked."""
        loss, hits, asked = self.each(scores, y)
        return loss.sum(), hits.sum(), asked.sum()

    def each(self, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same sums for each example by itself, (B,)."""
        if self.metric == "rmse":
            squares = (scores - y).square().sum(1)
            return squares, squares, torch.full_like(squares, y.shape[1], dtype=torch.long)
        asked = y != IGNORE
        losses = F.cross_entropy(scores.flatten(0, -2), y.flatten(), ignore_index=IGNORE, reduction="none")
        loss = losses.view_as(y).sum(1)
        hits = loss if self.metric == "bits_per_byte" else ((scores.argmax(-1) == y) & asked).sum(1)
        return loss, hits, asked.sum(1)

    def measure(self, total: float, count: int) -> float:
        """The metric out of its sum."""
        mean = total / max(count, 1)
        if self.metric == "rmse":
            return math.sqrt(mean) * self.unit
        return mean / math.log(2) if self.metric == "bits_per_byte" else mean


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
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    loss, metric, count = 0.0, 0.0, 0
    for i in range(0, len(split.x), batch_size):
        x, y, lengths = (None if t is None else t[i : i + batch_size].to(device) for t in split)
        assert x is not None
        assert y is not None
        with autocast or nullcontext():
            scores = network(x, lengths)
        sums = objective.total(scores.to(torch.promote_types(scores.dtype, torch.float32)), y)
        loss, metric, count = loss + float(sums[0]), metric + float(sums[1]), count + int(sums[2])
    network.train(was_training)
    return loss / max(count, 1), objective.measure(metric, count)


@torch.no_grad()
def predict(network: Network, split: Split, *, batch_size: int) -> Tensor:
    """The network's scores for every example of a split, on the CPU."""
    network.eval()
    device = next(network.parameters()).device
    parts = []
    for i in range(0, max(1, len(split.x)), batch_size):  # no example at all is one empty batch
        lengths = None if split.lengths is None else split.lengths[i : i + batch_size].to(device)
        parts.append(network(split.x[i : i + batch_size].to(device), lengths).float().cpu())
    return torch.cat(parts)
