"""Networks against each other on the same examples, with intervals.

Axes: E examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnlab.network import Network
from attnlab.tasks.base import Split
from attnlab.training.objective import Objective

RESAMPLES = 1_000
"""Of the examples, drawn with replacement; an interval holds the middle 95 % of what they give."""


@dataclass(frozen=True)
class Change:
    """A network's metric, and how far it is from that of the one it is compared with.

    ``low`` and ``high`` hold 95 % of the changes that resampled examples give, the same for both networks.
    """

    metric: float
    change: float
    low: float
    high: float


def batches(network: Network, split: Split, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """``x``, ``y`` and ``lengths`` of a split, ``size`` examples at a time, where the network is."""
    device = next(network.parameters()).device
    for at in range(0, len(split.x), size):
        x, y, lengths = (None if part is None else part[at : at + size].to(device) for part in split)
        assert x is not None
        assert y is not None
        yield x, y, lengths


@torch.no_grad()
def per_example_metric(
    network: Network,
    split: Split,
    objective: Objective,
    *,
    batch_size: int = 128,
    autocast: AbstractContextManager[Any] | None = None,
) -> Tensor:
    """For each example the sum that the metric averages, and how many were asked: (E, 2), in float64 on the CPU.

    The network is asked in eval mode and left in the mode it was in.
    """
    was_training = network.training
    network.eval()
    rows = [torch.empty(0, 2, dtype=torch.float64)]
    for x, y, lengths in batches(network, split, batch_size):
        with autocast or nullcontext():
            scores = network(x, lengths)
        _, hits, asked = objective.each(scores.to(torch.promote_types(scores.dtype, torch.float32)), y)
        rows.append(torch.stack([hits.double(), asked.double()], -1).cpu())
    network.train(was_training)
    return torch.cat(rows)


def paired_bootstrap(first: Tensor, others: Sequence[Tensor], objective: Objective, *, seed: int = 0) -> list[Change]:
    """Other networks against a first, from what `scored` says of each on the same examples.

    The intervals are those of the paired bootstrap (Efron & Tibshirani 1993, chapter 13: percentiles).

    Raises:
        ValueError: for networks that were asked other things.
    """
    if not all(torch.equal(first[:, 1], other[:, 1]) for other in others):
        raise ValueError("networks are compared on the same examples, and these were asked different things")
    table = torch.cat([first[:, 1:], first[:, :1], *(other[:, :1] for other in others)], -1)
    generator = torch.Generator().manual_seed(seed)
    exact = _metrics(table.sum(0), objective)
    changes = []
    for _ in range(RESAMPLES):
        drawn = torch.randint(len(table), (len(table),), generator=generator)
        metrics = _metrics(torch.bincount(drawn, minlength=len(table)).double() @ table, objective)
        changes.append(metrics - metrics[0])
    ends = torch.stack(changes).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), 0)
    rows = zip(exact.tolist(), (exact - exact[0]).tolist(), *ends.tolist(), strict=True)
    return [Change(*row) for row in rows][1:]


def _metrics(sums: Tensor, objective: Objective) -> Tensor:
    """How many were asked, then a sum a network: to the metric of each."""
    asked, *totals = sums.tolist()
    return torch.tensor([objective.measure(total, int(asked)) for total in totals], dtype=torch.float64)
