"""Grouped-query attention against multi-head attention, and the memory that shared keys save."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import KVCache, explain_path, masks
from attnlab.models.groupedquery import GroupedQueryAttention
from attnlab.models.groupedquery.reference import reference
from attnlab.models.multihead import MultiAttention

B, N, M, H, D, d = 2, 5, 7, 6, 66, 11

SHARED = pytest.mark.parametrize("num_kv_heads", [1, 2, 3, 6])


def grouped(num_kv_heads: int, **options: Any) -> GroupedQueryAttention:
    """A layer with random biases, because zero biases would hide mistakes."""
    torch.manual_seed(0)
    layer = GroupedQueryAttention(D, H, num_kv_heads=num_kv_heads, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return layer.eval()


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def repeated(layer: GroupedQueryAttention) -> MultiAttention:
    """Multi-head attention with a copy of the shared keys and values for every head."""
    multi = MultiAttention(D, H, causal=layer.causal, positions=layer.positions.name).double().eval()
    state = layer.state_dict()
    for name in ("qkv.weight", "qkv.bias"):
        queries, keys, values = state[name].split([H * d, layer.num_kv_heads * d, layer.num_kv_heads * d])
        heads = [queries]
        for shared in (keys, values):
            for head in range(H):
                group = head // (H // layer.num_kv_heads)
                heads.append(shared[group * d : (group + 1) * d])
        state[name] = torch.cat(heads)
    multi.load_state_dict(state)
    return multi


def test_with_equally_many_heads_it_equals_multi_head_attention_exactly() -> None:
    layer, multi = grouped(H, causal=True), MultiAttention(D, H, causal=True).double()
    multi.load_state_dict(layer.state_dict())
    assert torch.equal(layer(tokens()), multi(tokens()))
    assert torch.equal(layer.attention_weights(tokens()), multi.attention_weights(tokens()))


@SHARED
@pytest.mark.parametrize("causal", [True, False])
def test_it_equals_multi_head_attention_with_repeated_keys_and_values(num_kv_heads: int, causal: bool) -> None:
    layer, x = grouped(num_kv_heads, causal=causal), tokens()
    multi = repeated(layer)
    torch.testing.assert_close(layer(x), multi(x))
    torch.testing.assert_close(layer.attention_weights(x), multi.attention_weights(x))
    mask = masks.padding(torch.tensor([3, 5]))
    torch.testing.assert_close(layer(x, mask=mask), multi(x, mask=mask))


@SHARED
def test_cross_attention_shares_keys_too(num_kv_heads: int) -> None:
    layer, x, context = grouped(num_kv_heads), tokens(), tokens(M)
    torch.testing.assert_close(layer(x, context=context), repeated(layer)(x, context=context))


@pytest.mark.parametrize("positions", ["alibi", "t5"])
def test_positions_match_multi_head_attention(positions: str) -> None:
    layer = grouped(2, causal=True, positions=positions)
    torch.testing.assert_close(layer(tokens()), repeated(layer)(tokens()))


@pytest.mark.parametrize("positions", ["rotary", "alibi", "t5"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_reference_supports_positions(positions: Any, causal: bool) -> None:
    layer = GroupedQueryAttention(14, 6, num_kv_heads=3, head_dim=4, causal=causal, positions=positions).double()
    x = torch.randn(B, N, 14, dtype=torch.float64)
    mask = masks.causal().materialize(N).expand(B, 6, N, N) if causal else None
    torch.testing.assert_close(reference(layer, x, mask), layer(x))


def test_the_gradient_is_the_sum_over_the_group() -> None:
    layer = grouped(2)
    multi = repeated(layer)
    for each in (layer, multi):
        each(tokens()).square().sum().backward()
    copies = multi.qkv.weight.grad[H * d :].unflatten(0, (2, 2, H // 2, d))  # keys and values, groups, heads per group
    torch.testing.assert_close(layer.qkv.weight.grad[H * d :], copies.sum(2).flatten(0, 2))
    torch.testing.assert_close(layer.qkv.weight.grad[: H * d], multi.qkv.weight.grad[: H * d])


def test_a_key_value_head_affects_its_group_only() -> None:
    layer, x = grouped(2), tokens()
    before = layer.attention_weights(x)
    with torch.no_grad():
        layer.qkv.weight[(H + 1) * d : (H + 2) * d].mul_(3)  # the second key head
    changed = (layer.attention_weights(x) != before).flatten(2).any(-1).all(0)
    assert changed.tolist() == [False, False, False, True, True, True]


@SHARED
def test_parameters(num_kv_heads: int) -> None:
    rows = (H + 2 * num_kv_heads) * d
    for bias in (True, False):
        layer = GroupedQueryAttention(D, H, num_kv_heads=num_kv_heads, bias=bias)
        assert sum(p.numel() for p in layer.parameters()) == (rows + D) * D + (rows + D) * bias
    assert GroupedQueryAttention(64).num_kv_heads == 2


@SHARED
def test_the_cache_holds_the_shared_heads_only(num_kv_heads: int) -> None:
    layer, cache = grouped(num_kv_heads, causal=True), KVCache(N)
    with torch.no_grad():
        layer(tokens(), cache=cache)
    assert cache.bytes_per_token == B * 2 * num_kv_heads * d * 8  # keys and values, eight bytes per value


@pytest.mark.parametrize("num_kv_heads", [1, 2, 3])
def test_a_decoding_step_does_not_copy_shared_keys(num_kv_heads: int) -> None:
    layer, x, cache = grouped(num_kv_heads, causal=True), tokens(), KVCache(N)
    with torch.no_grad():
        layer(x[:, :-1], cache=cache)
        [path] = explain_path(layer, x[:, -1:], cache=cache)
    assert str(path) == f"shared: {H} heads of 1 queries use {num_kv_heads} heads of {N} keys without copies"


def test_a_decoding_step_of_multi_head_attention_is_fused() -> None:
    layer, x, cache = grouped(H, causal=True), tokens(), KVCache(N)
    with torch.no_grad():
        layer(x[:, :-1], cache=cache)
        [path] = explain_path(layer, x[:, -1:], cache=cache)
    assert path.name == "fused"


@SHARED
def test_head_dim_is_independent_of_embed_dim(num_kv_heads: int) -> None:
    layer = GroupedQueryAttention(7, 6, num_kv_heads=num_kv_heads, head_dim=5, causal=True).double()
    assert layer.qkv.weight.shape == ((6 + 2 * num_kv_heads) * 5, 7)
    assert layer.output.weight.shape == (7, 30)
    x = torch.randn(B, N, 7, dtype=torch.float64)
    torch.testing.assert_close(layer.apply_weights(layer.attention_weights(x), x), layer(x))
    cache = KVCache(N)
    with torch.no_grad():
        steps = torch.cat([layer(token, cache=cache) for token in x.split(1, 1)], 1)
    torch.testing.assert_close(steps, layer(x))


def test_repr_shows_the_heads() -> None:
    assert "num_heads=6" in repr(grouped(2))
    assert "num_kv_heads=2" in repr(grouped(2))
    assert "num_kv_heads" not in repr(grouped(H))
    assert "head_dim=5" in repr(GroupedQueryAttention(7, 6, head_dim=5))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"num_kv_heads": 4},
            ValueError,
            r"^num_kv_heads \(4\) must divide num_heads \(6\); try num_kv_heads=2, 3 or 6$",
        ),
        ({"num_kv_heads": 7}, ValueError, r"^num_kv_heads \(7\) must divide num_heads \(6\)"),
        ({"num_kv_heads": 0}, ValueError, "^num_kv_heads must be at least 1, not 0$"),
        ({"num_kv_heads": -2}, ValueError, "^num_kv_heads must be at least 1, not -2$"),
        ({"num_kv_heads": 2.0}, TypeError, "^num_kv_heads must be an integer, not 2.0$"),
        ({"num_kv_heads": True}, TypeError, "^num_kv_heads must be an integer, not True$"),
        ({"head_dim": 0}, ValueError, "^head_dim must be at least 1, not 0$"),
        ({"head_dim": 1.5}, TypeError, "^head_dim must be an integer, not 1.5$"),
        ({"num_heads": 4}, ValueError, r"^embed_dim \(66\) must be divisible by num_heads \(4\)"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GroupedQueryAttention(D, **{"num_heads": H, **options})
