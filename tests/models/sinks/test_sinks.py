"""Attention with sinks: multi-head attention in the limit, the share of the sink, and the options."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from comparison import assert_pruning_is_exact, assert_same, perturbed, random

from attnlab import check_attention, masks
from attnlab.models.multihead import MultiAttention
from attnlab.models.sinks import SinkAttention

B, N, H, D, d = 2, 7, 3, 12, 4


def layer_of(**options: Any) -> SinkAttention:
    return perturbed(SinkAttention(D, H, **options))


def multihead_like(layer: SinkAttention, **options: Any) -> MultiAttention:
    multihead = MultiAttention(D, H, causal=layer.causal, **options).double().eval()
    multihead.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "sink"})
    return multihead


@pytest.mark.parametrize(("sink", "trained"), [("learned", H), ("zero", 0)])
def test_one_logit_per_head_is_added_to_multi_head_attention(sink: Any, trained: int) -> None:
    layer = SinkAttention(D, H, sink=sink)
    assert sum(p.numel() for p in layer.parameters() if p.requires_grad) == 4 * D * (D + 1) + trained
    assert layer.sink.tolist() == [0.0] * H


@pytest.mark.parametrize("logit", [-800.0, float("-inf")])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_with_very_low_sinks_it_is_multi_head_attention(logit: float, causal: bool, positions: Any) -> None:
    layer, x, mask = layer_of(causal=causal, positions=positions), random(B, N, D), masks.padding(torch.tensor([4, 7]))
    with torch.no_grad():
        layer.sink.fill_(logit)
    multihead = multihead_like(layer, positions=positions)
    assert_same(layer(x, mask=mask), multihead(x, mask=mask))
    assert_same(layer.attention_weights(x), multihead.attention_weights(x))


def test_a_sink_of_zero_equals_a_zero_key_and_value() -> None:
    layer, x = layer_of(sink="zero"), random(B, N, D)
    Q, K, V = (part.unflatten(-1, (H, d)).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    K, V = (torch.nn.functional.pad(part, (0, 0, 1, 0)) for part in (K, V))
    heads = torch.nn.functional.scaled_dot_product_attention(Q, K, V)
    assert_same(layer(x), layer.output(heads.transpose(1, 2).flatten(2)))


def test_the_sink_takes_a_share_of_each_row() -> None:
    layer, x = layer_of(causal=True), random(B, N, D)
    Q, K, _ = (part.unflatten(-1, (H, d)).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    scores = (Q @ K.mT / d**0.5).masked_fill(~masks.causal().materialize(N), -torch.inf)
    rest = torch.sigmoid(scores.logsumexp(-1, keepdim=True) - layer.sink[:, None, None])
    assert_same(layer.attention_weights(x), rest * multihead_like(layer).attention_weights(x))


def test_a_very_high_sink_takes_all_attention() -> None:
    layer = layer_of()
    with torch.no_grad():
        layer.sink.fill_(800)
    assert_same(layer(random(B, N, D)), layer.output.bias.expand(B, N, D))


@pytest.mark.parametrize("sink", ["learned", "zero"])
def test_only_learned_sinks_receive_gradients(sink: Any) -> None:
    layer = layer_of(sink=sink)
    layer(random(B, N, D)).square().sum().backward()
    if sink == "learned":
        assert (layer.sink.grad != 0).all()
    else:
        assert layer.sink.grad is None


@pytest.mark.parametrize("sink", ["learned", "zero"])
@pytest.mark.parametrize("pruned", [[0], [2, 1]])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_pruning_is_exact(sink: Any, pruned: list[int], positions: Any) -> None:
    layer = layer_of(sink=sink, causal=True, positions=positions)
    small = assert_pruning_is_exact(layer, pruned, random(B, N, D))
    assert small.sink.shape == (H - len(pruned),)
    assert small.sink.requires_grad is layer.sink.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize(
    ("positions", "sink"), [("none", "zero"), ("rotary", "learned"), ("alibi", "zero"), ("t5", "learned")]
)
def test_conformance_with_options(positions: str, sink: str) -> None:
    check_attention(partial(SinkAttention, num_heads=2, positions=positions, sink=sink), fast=True)


@pytest.mark.parametrize("sink", ["one", 0])
def test_invalid_sinks_raise(sink: Any) -> None:
    with pytest.raises(ValueError, match=f"^sink must be 'learned' or 'zero', not {sink!r}$"):
        SinkAttention(D, H, sink=sink)
