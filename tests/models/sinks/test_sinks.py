"""Attention with sinks: multi-head attention where they are shallow, and what a deep one swallows."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import KVCache, check_attention, masks
from attnlab.models.multihead import MultiAttention
from attnlab.models.sinks import SinkAttention
from attnlab.nn.pruning import prune_heads

B, N, H, D, d = 2, 7, 3, 12, 4


def made(**options: Any) -> SinkAttention:
    """A layer whose parameters are moved off where they start, where they would hide a mistake."""
    torch.manual_seed(0)
    layer = SinkAttention(D, H, **options).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 3)
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def multihead(layer: SinkAttention, **options: Any) -> MultiAttention:
    multi = MultiAttention(D, H, causal=layer.causal, **options).double().eval()
    multi.load_state_dict({name: part for name, part in layer.state_dict().items() if name != "sink"})
    return multi


def test_one_logit_a_head_is_all_that_is_new() -> None:
    learned, zero = SinkAttention(D, H), SinkAttention(D, H, sink="zero")
    assert sum(p.numel() for p in learned.parameters()) == 4 * D * (D + 1) + H
    assert sum(p.numel() for p in zero.parameters() if p.requires_grad) == 4 * D * (D + 1)
    assert learned.sink.tolist() == zero.sink.tolist() == [0.0] * H


@pytest.mark.parametrize("depth", [-800.0, float("-inf")])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_without_its_sinks_it_is_multi_head_attention(depth: float, causal: bool, positions: Any) -> None:
    layer, x, mask = made(causal=causal, positions=positions), tokens(), masks.padding(torch.tensor([4, 7]))
    with torch.no_grad():
        layer.sink.fill_(depth)
    multi = multihead(layer, positions=positions)
    same(layer(x, mask=mask), multi(x, mask=mask))
    same(layer.attention_weights(x), multi.attention_weights(x))


def test_a_sink_of_zero_is_a_token_of_zeros() -> None:
    layer, x = made(sink="zero"), tokens()
    Q, K, V = (part.unflatten(-1, (H, d)).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    K, V = (torch.nn.functional.pad(part, (0, 0, 1, 0)) for part in (K, V))
    heads = torch.nn.functional.scaled_dot_product_attention(Q, K, V)
    same(layer(x), layer.output(heads.transpose(1, 2).flatten(2)))


def test_what_is_missing_from_a_row_is_the_share_of_the_sink() -> None:
    layer, x = made(causal=True), tokens()
    multi = multihead(layer)
    Q, K, _ = (part.unflatten(-1, (H, d)).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    scores = (Q @ K.mT / d**0.5).masked_fill(~masks.causal().materialize(N), -torch.inf)
    kept = torch.sigmoid(scores.logsumexp(-1) - layer.sink[:, None])
    same(layer.attention_weights(x).sum(-1), kept)
    same(layer.attention_weights(x), kept.unsqueeze(-1) * multi.attention_weights(x))


def test_a_deep_sink_swallows_all() -> None:
    layer, x = made(), tokens()
    with torch.no_grad():
        layer.sink.fill_(800)
    same(layer(x), layer.output.bias.expand(B, N, D))


def test_the_sinks_are_trained_and_the_fixed_one_is_not() -> None:
    for sink, moves in (("learned", True), ("zero", False)):
        layer = made(sink=sink)
        layer(tokens()).square().sum().backward()
        assert (layer.sink.grad is not None) is moves
    learned = made()
    learned(tokens()).square().sum().backward()
    assert (learned.sink.grad != 0).all()


@pytest.mark.parametrize("sink", ["learned", "zero"])
@pytest.mark.parametrize("gone", [[0], [2, 1]])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_pruning_is_exact(sink: Any, gone: list[int], positions: Any) -> None:
    layer, x = made(sink=sink, causal=True, positions=positions), tokens()
    small = prune_heads(layer, gone)
    assert small.sink.shape == (H - len(gone),)
    assert small.sink.requires_grad is layer.sink.requires_grad
    with torch.no_grad():
        for head in gone:
            layer.output.weight[:, head * d : (head + 1) * d] = 0
    same(small(x), layer(x))


@pytest.mark.parametrize("positions", ["rotary", "alibi", "t5"])
@pytest.mark.parametrize("sink", ["learned", "zero"])
def test_positions_keep_every_promise(positions: str, sink: str) -> None:
    check_attention(partial(SinkAttention, num_heads=2, positions=positions, sink=sink), fast=True)


def test_the_fixed_sink_keeps_every_promise() -> None:
    check_attention(partial(SinkAttention, num_heads=2, sink="zero"), fast=True)


def test_steps_are_the_whole() -> None:
    layer, x, cache = made(causal=True, positions="rotary"), tokens(), KVCache(N)
    with torch.no_grad():
        same(torch.cat([layer(part, cache=cache) for part in x.split([3, 1, 3], 1)], 1), layer(x))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sink": "one"}, "^sink must be 'learned' or 'zero', not 'one'$"),
        ({"sink": 0}, "^sink must be 'learned' or 'zero', not 0$"),
        ({"num_heads": 5}, r"^embed_dim \(12\) must be divisible by num_heads \(5\)"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SinkAttention(D, **{"num_heads": H, **options})
