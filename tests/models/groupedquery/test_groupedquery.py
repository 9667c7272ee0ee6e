"""Grouped-query and multi-query attention: the KV cache holds shared heads once, and steps do not copy them."""

from __future__ import annotations

import pytest
import torch
from comparison import assert_same, perturbed, random

from attnlab import KVCache, explain_path
from attnlab.models.groupedquery import GroupedQueryAttention

B, N, H, D, d = 2, 5, 6, 66, 11


@pytest.mark.parametrize(
    ("num_kv_heads", "path"),
    [
        *(
            (shared, f"shared: 6 heads of 1 queries use {shared} heads of 5 keys without copies")
            for shared in (1, 2, 3)
        ),
        (6, "fused"),
    ],
)
@torch.no_grad()
def test_the_cache_holds_the_shared_heads_only(num_kv_heads: int, path: str) -> None:
    layer, x = perturbed(GroupedQueryAttention(D, H, num_kv_heads=num_kv_heads, causal=True)), random(B, N, D)
    cache = KVCache(N)
    steps = torch.cat([layer(part, cache=cache) for part in x[:, :-1].split([1, 3], 1)], 1)
    [record] = explain_path(layer, x[:, -1:], cache=cache)
    assert str(record).startswith(path)
    assert cache.bytes_per_token == B * 2 * num_kv_heads * d * 8  # keys and values, eight bytes per value
    assert_same(steps, layer(x)[:, :-1])
