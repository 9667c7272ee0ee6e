"""Importance is the gradient of the loss with respect to a gate; it determines the pruning order."""

from __future__ import annotations

import pytest
import torch
from planted import METRICS, D, H, network, noisy, task_data
from torch import Tensor

from attnlab.analysis.importance import importance, mean_heads, pruning_order, select_heads
from attnlab.network import Inputs, Network, Outputs
from attnlab.network.pruning import edit_heads
from attnlab.nn.multihead import MultiHeadBase
from attnlab.tasks.base import Split
from attnlab.training.objective import Objective
from attnlab.utils.errors import UserError


def by_differences(net: Network, split: Split, objective: Objective, step: float = 1e-5) -> list[Tensor]:
    """Reference values by finite differences for each example and gate."""

    @torch.no_grad()
    def losses(layer: torch.nn.Module, head: int, gate: float) -> Tensor:
        factors = torch.ones(layer.num_heads, 1, dtype=torch.float64)
        factors[head] = gate
        with edit_heads(layer, factors.mul):
            scores = net(split.x, split.lengths)
        return torch.stack([objective.loss(scores[i : i + 1], split.y[i : i + 1]) for i in range(len(scores))])

    return [
        torch.stack(
            [
                (losses(layer, head, 1 + step) - losses(layer, head, 1 - step)).abs().mean() / (2 * step)
                for head in range(layer.num_heads)
            ]
        )
        if isinstance(layer, MultiHeadBase)
        else torch.zeros(0, dtype=torch.float64)
        for layer in net.mechanisms()
    ]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("model", ["multihead", "groupedquery", "selfhead,multihead"])
def test_importance_is_the_gradient_of_a_gate(model: str, kind: str, padded: bool) -> None:
    net = network(model, kind, positions="t5")
    data = noisy(task_data(net, padded=padded))
    split = data.train.take(slice(11))
    objective = Objective.of(data)
    expected = by_differences(net, split, objective)
    for batch_size in (3, 128):
        actual = importance(net, split, objective, batch_size=batch_size, normalised=False)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)
    assert all((values > 1e-4).all() for values in expected), "every head matters"
    normalised = importance(net, split, objective)
    torch.testing.assert_close(normalised, [values / values.norm() for values in expected], rtol=1e-6, atol=1e-9)


def test_long_padded_batches_are_not_packed() -> None:
    torch.manual_seed(0)
    net = Network("multihead", Inputs("tokens", 11), Outputs("classes", 3), 101, embed_dim=D, options={"num_heads": H})
    net = net.double().eval()
    split = Split(torch.randint(11, (5, 101)), torch.randint(3, (5, 1)), torch.tensor([101, 97, 71, 67, 89]))
    objective = Objective("accuracy")
    with torch.no_grad():
        actual = importance(net, split, objective, normalised=False)
    torch.testing.assert_close(actual, by_differences(net, split, objective), rtol=1e-5, atol=1e-9)
    assert all(layer.supports_packing for layer in net.mechanisms()), "and are packed again afterwards"


def test_mean_of_a_head_ignores_padding() -> None:
    net = network()
    split = task_data(net).train
    outputs: list[Tensor] = []

    def keep(heads: Tensor) -> Tensor:
        outputs.append(heads)
        return heads

    with torch.no_grad(), edit_heads(net.mechanisms()[1], keep):
        for x, length in zip(split.x, split.lengths, strict=True):
            net(x[None, :length])
    expected = torch.cat([heads.flatten(0, 1) for heads in outputs]).mean(0)
    for batch_size in (11, 128):
        torch.testing.assert_close(mean_heads(net, split, batch_size=batch_size)[1], expected)


def test_pruning_order() -> None:
    net = network()
    values = [torch.tensor([0.5, 0.1, 0.3, 0.2]), torch.tensor([0.01, 0.02, 0.03, 0.15])]
    steps = pruning_order(net, values)
    assert steps == [((1, 0),), ((1, 1),), ((1, 2),), ((0, 1),), ((0, 3),), ((0, 2),)]
    assert select_heads(steps, 0.25, num_heads=8) == {1: [0, 1]}
    assert select_heads(steps, 0.3, num_heads=8) == {1: [0, 1]}, "what fits"
    assert select_heads(steps, 0.5, num_heads=8) == {1: [0, 1, 2], 0: [1]}
    assert select_heads(steps, 0.75, num_heads=8) == {1: [0, 1, 2], 0: [1, 3, 2]}
    values = [torch.tensor([0.1, 0.6, 0.4, 0.5])] * 2
    assert pruning_order(network("groupedquery", num_kv_heads=2), values) == [((0, 0), (0, 1)), ((1, 0), (1, 1))]
    assert pruning_order(network("groupedquery", num_kv_heads=1), values) == pruning_order(net, values)


@pytest.mark.parametrize(
    ("kv", "share", "says"),
    [
        (2, 0.0, "must be above 0 and below 1, not 0"),
        (2, float("nan"), "must be above 0 and below 1, not nan"),
        (2, 1.0, "must be above 0 and below 1, not 1"),
        (2, 0.2, "0.2 of 8 heads cannot be pruned: .* so that 2 to 4 can be pruned, a share from 0.25"),
        (2, 0.7, "0.7 of 8 heads cannot be pruned: .* to 0.5"),
        (None, 0.5, "no head can be pruned: every layer has one head"),
    ],
)
def test_invalid_shares_are_refused(kv: int | None, share: float, says: str) -> None:
    net = network("groupedquery", num_kv_heads=kv) if kv else network(num_heads=1)
    steps = pruning_order(net, [torch.ones(layer.num_heads) for layer in net.mechanisms()])
    with pytest.raises(UserError, match=says):
        select_heads(steps, share, num_heads=8)
