"""Head studies of networks with known roles of the heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from planted import TRAIN, VALIDATION, H, columns, network, noisy, only, task_data, zero_heads

from attnlab.analysis.heads import study, without
from attnlab.analysis.importance import layers_with_heads, mean_heads
from attnlab.network.pruning import prune_heads
from attnlab.nn.attention import UnsupportedError
from attnlab.tasks.base import Split
from attnlab.training.objective import Objective, evaluate


def test_only_active_head_is_found_and_pruned_last() -> None:
    net, calls = only(network(), 1, 2), []
    result = study(net, noisy(task_data(net)), progress=lambda *done: calls.append(done))
    assert calls == [(i, 15) for i in range(15)]  # whole, 8 heads alone, 6 steps
    assert result.whole == 1
    worst = min(result.heads, key=lambda head: head.without.metric)
    assert (worst.layer, worst.head) == (1, 2)
    assert worst.without.metric < 0.7
    assert worst.without.high < -0.1
    for head in result.heads:
        if head is not worst:
            assert (head.without.change, head.without.low, head.without.high) == (0, 0, 0)
    assert [step.left for step in result.curve] == [7, 6, 5, 4, 3, 2]
    assert all(step.reached.metric == 1 for step in result.curve), "it is the last of its layer"
    assert (result.training_examples, result.validation_examples) == (TRAIN, VALIDATION)


def test_zeroed_head_has_no_effect_and_is_pruned_first() -> None:
    net = zero_heads(network(), [(0, 3)])
    result = study(net, noisy(task_data(net)))
    head = result.heads[3]
    assert (head.layer, head.head, head.importance) == (0, 3, 0)
    assert head.without.change == 0
    assert result.curve[0].gone == ((0, 3),)
    assert result.plan(1 / 8) == {0: [3]}


@pytest.mark.parametrize("model", ["multihead", "groupedquery", "latent,multihead", "multihead,selfhead"])
def test_curve_matches_pruning(model: str) -> None:
    net = network(model)
    data = noisy(task_data(net))
    result = study(net, data)
    for step in result.curve:
        pruned = prune_heads(net, result.plan(1 - step.left / len(result.heads)))
        assert sum(layer.num_heads for layer in layers_with_heads(pruned).values()) == step.left
        _, metric = evaluate(pruned, data.validation, Objective("accuracy"), batch_size=128)
        assert metric == pytest.approx(step.reached.metric)
    assert min(step.reached.metric for step in result.curve) < 0.95, "pruning has an effect"


@torch.no_grad()
def test_without_replaces_by_zero_or_by_the_mean() -> None:
    net = network()
    x, _, lengths = split = task_data(net).validation
    means = mean_heads(net, split)
    with without(net, [(0, 1), (1, 3)]):
        zero = net(x, lengths)
    with without(net, [(1, 3)], means):
        mean = net(x, lengths)
    attention = net.mechanisms()[1]
    filling = columns(net, 1)[:, 3] @ means[1][3]
    columns(net, 1)[:, 3] = 0
    attention.output.bias.add_(filling)  # a constant is a bias
    torch.testing.assert_close(mean, net(x, lengths))
    attention.output.bias.sub_(filling)
    columns(net, 0)[:, 1] = 0
    torch.testing.assert_close(zero, net(x, lengths))


def test_mean_ablation_of_a_constant_head_has_no_effect() -> None:
    net = only(network(), 1, 2)
    with torch.no_grad():
        attention = net.mechanisms()[1]
        values = attention.qkv.weight.unflatten(0, (3, H, -1))[2]
        values[2] = 0  # its values are their bias alone
    data = noisy(task_data(net))
    assert study(net, data, ablation="mean").heads[6].without.change == 0
    assert study(net, data, ablation="zero").heads[6].without.change < -0.1


def test_study_uses_no_test_data_and_changes_nothing() -> None:
    net = network()
    data = task_data(net)
    before = {name: value.clone() for name, value in net.train().state_dict().items()}
    unusable = Split(torch.full_like(data.test.x, float("nan")), data.test.y, data.test.lengths)
    assert study(net, data, ablation="mean") == study(net, replace(data, test=unusable), ablation="mean")
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(layer.output._forward_pre_hooks or layer._forward_pre_hooks for layer in net.mechanisms())


def test_training_sample_depends_on_the_seed() -> None:
    net = network()
    data = noisy(task_data(net))
    few, other = (study(net, data, examples=7, seed=seed) for seed in (0, 1))
    assert few.training_examples == 7
    assert few == study(net, data, examples=7, seed=0)
    assert [head.importance for head in few.heads] != [head.importance for head in other.heads]
    assert [head.without.metric for head in few.heads] == [head.without.metric for head in other.heads]


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ("multihead", {"examples": 0}, ValueError, "needs at least 1 training example, not 0"),
        ("multihead", {"ablation": "noise"}, ValueError, "ablation must be 'zero' or 'mean', not 'noise'"),
        ("selfhead", {}, UnsupportedError, "SelfAttention has no separate heads"),
    ],
)
def test_invalid_studies_are_refused(model: str, options: dict, error: type[Exception], message: str) -> None:
    net = network(model)
    with pytest.raises(error, match=message):
        study(net, task_data(net), **options)
