"""Importance is the gradient of the loss with respect to a gate; it determines the pruning order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from planted import CLASSES, D, H, N, columns, network, noisy, only, task_data, zero_heads
from torch import Tensor

from attnlab.analysis.importance import importance, mean_heads, pruning_order, select_heads
from attnlab.network import Inputs, Network, Outputs
from attnlab.network.pruning import edit_heads
from attnlab.nn.attention import UnsupportedError
from attnlab.tasks.base import Split
from attnlab.training.objective import Objective
from attnlab.utils.errors import UserError

METRICS = {"classes": "accuracy", "tokens": "bits_per_byte", "values": "rmse"}


def by_differences(net: Network, split: Split, objective: Objective, step: float = 1e-5) -> list[Tensor]:
    """Reference values by finite differences for each example and gate."""
    found = []
    for layer in net.mechanisms():
        worth = []
        for head in range(layer.num_heads):
            slopes = []
            for i in range(len(split.x)):
                x, y, lengths = (None if part is None else part[i : i + 1] for part in split)
                losses = []
                for gate in (1 + step, 1 - step):
                    factors = torch.ones(layer.num_heads, 1, dtype=torch.float64)
                    factors[head] = gate
                    with edit_heads(layer, factors.mul), torch.no_grad():
                        losses.append(float(objective.loss(net(x, lengths), y)))
                slopes.append(abs(losses[0] - losses[1]) / (2 * step))
            worth.append(sum(slopes) / len(slopes))
        found.append(torch.tensor(worth, dtype=torch.float64))
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("model", ["multihead", "groupedquery"])
def test_importance_is_the_gradient_of_a_gate(model: str, kind: str, padded: bool) -> None:
    net = network(model, kind, positions="t5")
    data = noisy(task_data(net, METRICS[kind], padded=padded))
    split = Split(*(None if part is None else part[:11] for part in data.train))
    objective = Objective.of(data)
    truth = by_differences(net, split, objective)
    for batch_size in (3, 128):
        found = importance(net, split, objective, batch_size=batch_size, normalised=False)
        torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-9)
    assert all((worth > 1e-4).all() for worth in truth), "there is something to be wrong about"
    normalised = importance(net, split, objective)
    torch.testing.assert_close(normalised, [worth / worth.norm() for worth in truth], rtol=1e-6, atol=1e-9)


def test_gradients_of_opposite_sign_do_not_cancel() -> None:
    net = network(kind="values")
    data = task_data(net, "rmse")
    split = Split(
        data.train.x[:1].repeat(2, 1, 1),
        data.train.y[:1].repeat(2, 1) + torch.tensor([[1.0], [-1.0]]).double(),
        None if data.train.lengths is None else data.train.lengths[:1].repeat(2),
    )
    found = importance(net, split, Objective("rmse"), normalised=False)
    assert min(float(worth.min()) for worth in found) > 1e-3


def test_long_padded_batches_are_not_packed() -> None:
    torch.manual_seed(0)
    net = Network("multihead", Inputs("tokens", 11), Outputs("classes", 3), 101, embed_dim=D, options={"num_heads": H})
    net = net.double().eval()
    split = Split(torch.randint(11, (5, 101)), torch.randint(3, (5, 1)), torch.tensor([101, 97, 71, 67, 89]))
    objective = Objective("accuracy")
    with torch.no_grad():
        found = importance(net, split, objective, normalised=False)
    torch.testing.assert_close(found, by_differences(net, split, objective), rtol=1e-5, atol=1e-9)
    assert all(layer.supports_packing for layer in net.mechanisms()), "and are packed again afterwards"


def test_zeroed_head_has_no_importance() -> None:
    net = zero_heads(network(), [(0, 1), (1, 3)])
    found = importance(net, noisy(task_data(net)).train, Objective("accuracy"))
    for layer, head in ((0, 1), (1, 3)):
        assert found[layer][head] == 0
        assert (found[layer] == 0).sum() == 1


def test_only_active_head_has_all_the_importance() -> None:
    net = only(network(), 1, 2)
    first, second = importance(net, noisy(task_data(net)).train, Objective("accuracy"))
    assert first.tolist() == [0, 0, 0, 0]
    assert second.tolist() == pytest.approx([0, 0, 1, 0])


def test_network_is_not_changed() -> None:
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    importance(net, task_data(net).train, Objective("accuracy"))
    mean_heads(net, task_data(net).train)
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(layer.output._forward_pre_hooks or layer._forward_pre_hooks for layer in net.mechanisms())


def test_mechanism_without_heads_is_refused() -> None:
    net = network("selfhead")
    for ask in (importance, lambda net, split, _: mean_heads(net, split)):
        with pytest.raises(UnsupportedError, match="SelfAttention has no separate heads"):
            ask(net, task_data(net).train, Objective("accuracy"))


def test_mean_of_a_head_ignores_padding() -> None:
    net = network()
    split = task_data(net).train
    seen: list[Tensor] = []

    def keep(heads: Tensor) -> Tensor:
        seen.append(heads)
        return heads

    with torch.no_grad(), edit_heads(net.mechanisms()[1], keep):
        for x, length in zip(split.x, split.lengths, strict=True):
            net(x[None, :length])
    truth = torch.cat([heads.flatten(0, 1) for heads in seen]).mean(0)
    for batch_size in (11, 128):
        torch.testing.assert_close(mean_heads(net, split, batch_size=batch_size)[1], truth)


# What can go


def test_pruning_order() -> None:
    net = network()
    worth = [torch.tensor([0.5, 0.1, 0.3, 0.2]), torch.tensor([0.01, 0.02, 0.03, 0.15])]
    steps = pruning_order(net, worth)
    assert steps == [((1, 0),), ((1, 1),), ((1, 2),), ((0, 1),), ((0, 3),), ((0, 2),)]
    assert select_heads(steps, 0.25, num_heads=8) == {1: [0, 1]}
    assert select_heads(steps, 0.3, num_heads=8) == {1: [0, 1]}, "what fits"
    assert select_heads(steps, 0.5, num_heads=8) == {1: [0, 1, 2], 0: [1]}
    assert select_heads(steps, 0.75, num_heads=8) == {1: [0, 1, 2], 0: [1, 3, 2]}


def test_groups_are_pruned_as_a_whole() -> None:
    worth = [torch.tensor([0.1, 0.6, 0.4, 0.5])] * 2
    assert pruning_order(network("groupedquery", num_kv_heads=2), worth) == [((0, 0), (0, 1)), ((1, 0), (1, 1))]
    assert pruning_order(network("groupedquery", num_kv_heads=1), worth) == pruning_order(network(), worth)


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (0.0, "must be above 0 and below 1, not 0"),
        (float("nan"), "must be above 0 and below 1, not nan"),
        (1.0, "must be above 0 and below 1, not 1"),
        (
            0.2,
            "0.2 of 8 heads cannot be pruned: .* so that 2 to 4 can be pruned, a share from 0.25",
        ),
        (0.7, "0.7 of 8 heads cannot be pruned: .* to 0.5"),
    ],
)
def test_invalid_shares_are_refused(share: float, says: str) -> None:
    steps = pruning_order(network("groupedquery", num_kv_heads=2), [torch.ones(H)] * 2)
    with pytest.raises(UserError, match=says):
        select_heads(steps, share, num_heads=8)


def test_nothing_to_prune_is_refused() -> None:
    net: Any = network(num_heads=1)
    with pytest.raises(UserError, match="no head can be pruned: every layer has one head"):
        select_heads(pruning_order(net, [torch.ones(1)] * 2), 0.5, num_heads=2)


def test_sizes_are_distinct() -> None:
    assert len({N, CLASSES, H, D // H + 1, D}) == 5
    assert columns(network(), 0).shape == (D, H, D // H)
