"""Paired bootstrap intervals for the difference between two networks on the same examples.

Axes: E examples.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnlab.network import Network
from attnlab.tasks.base import Split
from attnlab.training.objective import Objective, score_batches

RESAMPLES = 2_000
MAX_BCA_EXAMPLES = 5_000
"""The acceleration of BCa costs E² operations, so that larger samples use percentiles."""


@dataclass(frozen=True)
class Change:
    """A network's metric, its difference from the network it is compared with, and the 95 % interval of that."""

    metric: float
    change: float
    low: float
    high: float


@torch.no_grad()
def per_example_metric(
    network: Network,
    split: Split,
    objective: Objective,
    *,
    batch_size: int = 128,
    autocast: AbstractContextManager[Any] | None = None,
) -> Tensor:
    """For each example the sum that the metric averages and its number of targets: (E, 2), float64 on the CPU."""
    rows = [torch.empty(0, 2, dtype=torch.float64)]
    for scores, y in score_batches(network, split, batch_size, autocast):
        _, sums, targets = objective.each(scores, y)
        rows.append(torch.stack([sums.double(), targets.double()], -1).cpu())
    return torch.cat(rows)


def paired_bootstrap(first: Tensor, others: Sequence[Tensor], objective: Objective, *, seed: int = 0) -> list[Change]:
    """Each of ``others`` compared with ``first``, from their `per_example_metric` on the same examples.

    The intervals are bias-corrected and accelerated (BCa; Efron & Tibshirani 1993, chapter 14).

    Raises:
        ValueError: for networks with different numbers of targets.
    """
    if not all(torch.equal(first[:, 1], other[:, 1]) for other in others):
        raise ValueError("networks can only be compared on the same examples, but these have different targets")
    baseline, targets = first.numpy().T
    return [_compare(baseline, other[:, 0].numpy(), targets, objective, seed) for other in others]


def _compare(
    first: NDArray[Any], other: NDArray[Any], targets: NDArray[Any], objective: Objective, seed: int
) -> Change:
    from scipy.stats import DegenerateDataWarning, bootstrap

    def difference(a: NDArray[Any], b: NDArray[Any], count: NDArray[Any], axis: int = -1) -> NDArray[Any]:
        total = count.sum(axis)
        values = objective.measure(b.sum(axis), total) - objective.measure(a.sum(axis), total)
        return np.round(values, 12)  # rounding errors would hide ties, which the bias correction counts

    change = float(difference(first, other, targets))
    low = high = change
    if len(targets) > 1 and not np.array_equal(first, other):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateDataWarning)
            interval = bootstrap(
                (first, other, targets),
                difference,
                paired=True,
                n_resamples=RESAMPLES,
                batch=100,
                method="BCa" if len(targets) <= MAX_BCA_EXAMPLES else "percentile",
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite(interval.low) and np.isfinite(interval.high):  # NaN where all resamples are equal
            low, high = float(interval.low), float(interval.high)
    return Change(float(objective.measure(other.sum(), targets.sum())), change, low, high)
