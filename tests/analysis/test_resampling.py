"""Paired comparison of networks on the same examples."""

from __future__ import annotations

import math

import pytest
import torch
from planted import METRICS, network, noisy, task_data

from attnlab.analysis.bootstrap import paired_bootstrap, per_example_metric
from attnlab.training.objective import Objective, evaluate


@pytest.mark.parametrize("kind", METRICS)
def test_metric_matches_evaluate(kind: str) -> None:
    net = network(kind=kind).train()
    data = noisy(task_data(net))
    objective = Objective(data.metric, unit=7.0)
    sums = per_example_metric(net, data.train, objective, batch_size=11)
    assert net.training
    _, metric = evaluate(net, data.train, objective, batch_size=13)
    change = paired_bootstrap(sums, [sums], objective)[0]
    assert change.metric == pytest.approx(metric)
    assert (change.change, change.low, change.high) == (0, 0, 0)


def test_intervals_of_a_paired_difference() -> None:
    generator = torch.Generator().manual_seed(0)
    first = (torch.rand(401, 2, generator=generator) < 0.9).double()
    other = (torch.rand(401, 2, generator=generator) < 0.8).double() * first
    first[:, 1] = other[:, 1] = 1  # one target per example
    change, again = (paired_bootstrap(first, [other], Objective("accuracy"))[0] for _ in range(2))
    assert again == change
    moves = (other - first)[:, 0]
    error = float(moves.std()) / math.sqrt(401)
    assert change.change == pytest.approx(float(moves.mean()))
    assert change.low == pytest.approx(change.change - 1.96 * error, abs=0.3 * error)
    assert change.high == pytest.approx(change.change + 1.96 * error, abs=0.3 * error)


def test_examples_are_weighted_by_their_targets() -> None:
    first = torch.tensor([[3.0, 3.0], [0.0, 1.0]], dtype=torch.float64)
    other = torch.tensor([[0.0, 3.0], [1.0, 1.0]], dtype=torch.float64)
    change = paired_bootstrap(first, [other], Objective("accuracy"))[0]
    assert (change.metric, change.change) == (0.25, -0.5)
    assert (change.low, change.high) == (-1, 1)


def test_different_targets_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="these have different targets"):
        paired_bootstrap(torch.ones(3, 2), [torch.full((3, 2), 2.0)], Objective("accuracy"))
