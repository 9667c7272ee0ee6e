"""Multi-query attention: grouped-query attention with one group, and the smallest KV cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from comparison import assert_same, perturbed
from torch import Tensor

from attnlab import KVCache, check_attention, explain_path, masks
from attnlab.models.groupedquery import GroupedQueryAttention
from attnlab.models.multiquery import MultiQueryAttention
from attnlab.network.pruning import prune_heads

B, N, H, D, d = 2, 7, 3, 12, 4


def made(**options: Any) -> MultiQueryAttention:
    """A layer with parameters far from their initial values, which would hide mistakes."""
    torch.manual_seed(0)
    return perturbed(MultiQueryAttention(D, H, **options))


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("head_dim", [None, 10])
def test_parameters(bias: bool, head_dim: int | None) -> None:
    layer, wide = MultiQueryAttention(D, H, head_dim=head_dim, bias=bias), head_dim or d
    assert sum(p.numel() for p in layer.parameters()) == (D + bias) * (H + 2) * wide + (H * wide + bias) * D


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_it_equals_grouped_query_attention_with_one_group(causal: bool, positions: Any) -> None:
    layer, x, mask = made(causal=causal, positions=positions), tokens(), masks.padding(torch.tensor([4, 7]))
    grouped = GroupedQueryAttention(D, H, num_kv_heads=1, causal=causal, positions=positions).double()
    grouped.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x, mask=mask), grouped(x, mask=mask))
    assert torch.equal(layer.attention_weights(x), grouped.attention_weights(x))


def test_the_cache_holds_one_key_and_one_value_per_token() -> None:
    layer, x, cache = made(causal=True, positions="rotary"), tokens(), KVCache(N)
    with torch.no_grad():
        assert_same(
            torch.cat([layer(part, cache=cache) for part in x[:, :-1].split([3, 1, 2], 1)], 1), layer(x)[:, :-1]
        )
        [path] = explain_path(layer, x[:, -1:], cache=cache)
    assert cache.bytes_per_token == B * 2 * d * 8
    assert str(path) == f"shared: {H} heads of 1 queries use 1 heads of {N} keys without copies"


@pytest.mark.parametrize("removed", [[0], [2, 1]])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_pruning_is_exact_and_keeps_the_key(removed: list[int], positions: Any) -> None:
    layer, x = made(causal=True, positions=positions), tokens()
    small = prune_heads(layer, removed)
    assert small.num_kv_heads == 1
    assert torch.equal(small.qkv.weight[-2 * d :], layer.qkv.weight[-2 * d :])
    with torch.no_grad():
        for head in removed:
            layer.output.weight[:, head * d : (head + 1) * d] = 0
    assert_same(small(x), layer(x))


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_every_check_passes_with_positions(positions: str) -> None:
    check_attention(partial(MultiQueryAttention, num_heads=2, positions=positions), fast=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_heads": 5}, ValueError, r"^embed_dim \(12\) must be divisible by num_heads \(5\)"),
        ({"head_dim": 0}, ValueError, "^head_dim must be at least 1, not 0$"),
        ({"head_dim": 1.5}, TypeError, "^head_dim must be an integer, not 1.5$"),
        ({"num_kv_heads": 2}, TypeError, "unexpected keyword argument 'num_kv_heads'$"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultiQueryAttention(D, **{"num_heads": H, **options})
