"""Biases with any number of axes, and attention maps applied to values of all documented shapes, per mechanism."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mechanisms import REPRESENTATIVES, supporting
from torch import Tensor

from attnlab.catalog import registry
from attnlab.masks import causal, sliding_window
from attnlab.nn.attention import Attention
from attnlab.nn.cache import KVCache
from attnlab.ops.softmax import SoftmaxMap

B, H, N, D, W = 2, 6, 7, 24, 5
WITH_BIAS = supporting("attn_bias", among=REPRESENTATIVES)
WITH_WEIGHTS = supporting("weights", among=REPRESENTATIVES)
SHAPES = [(), (N,), (N, 1), (N, N), (1, N, 1), (B, 1, 1, N), (B, 1, N, N)]
PER_HEAD = [(H, 1, N), (B, H, N, N)]


def layer(name: str, **options: Any) -> Attention:
    torch.manual_seed(0)
    names = {option.name for option in registry.entry(name).options}
    sizes = {"num_heads": H, "num_kv_heads": 2}
    mechanism: Any = registry.load(name)
    made = mechanism(D, **{option: size for option, size in sizes.items() if option in names}, **options)
    return made.double().eval()


def tensor(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", WITH_BIAS)
@torch.no_grad()
def test_a_bias_with_fewer_axes_equals_the_expanded_one(name: str) -> None:
    made, x, values = layer(name, causal=True), tensor(B, N, D), tensor(B, 1, N, W)
    for shape in SHAPES + (PER_HEAD if made.num_heads == H else []):
        bias = tensor(*shape)
        whole = bias.expand(B, made.num_heads, N, N).contiguous()
        pairs = [
            (made(x, attn_bias=bias), made(x, attn_bias=whole)),
            (made.attention_weights(x, attn_bias=bias), made.attention_weights(x, attn_bias=whole)),
            (made.attention_map(x, attn_bias=bias).apply(values), made.attention_map(x, attn_bias=whole).apply(values)),
        ]
        if "cache" in made.card.supports:
            cache = KVCache(N)
            rows = bias[..., : N - 2, :] if bias.dim() > 1 and bias.shape[-2] > 1 else bias
            rows = rows[..., : N - 2] if bias.dim() and bias.shape[-1] > 1 else rows
            last = bias[..., N - 2 :, :] if bias.dim() > 1 and bias.shape[-2] > 1 else bias
            parts = [made(x[:, : N - 2], attn_bias=rows, cache=cache), made(x[:, N - 2 :], attn_bias=last, cache=cache)]
            pairs.append((torch.cat(parts, 1), pairs[0][1]))
        for actual, expected in pairs:
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
        assert shape[-1:] != (N,) or (pairs[0][1] - made(x)).abs().max() > 1e-6


@torch.no_grad()
def test_a_bias_with_fewer_axes_under_a_window_of_the_cache() -> None:
    made, x, mask = layer("multihead", causal=True), tensor(B, 301, D), causal()
    for shape in ((), (301,)):
        bias, cache = tensor(*shape), KVCache(301, window=11)
        parts = []
        for start in range(0, 301, 43):
            stop = start + 43
            part = bias if bias.dim() == 0 else bias[:stop]
            parts.append(made(x[:, start:stop], mask=mask & sliding_window(11), attn_bias=part, cache=cache))
        assert cache.start > 0
        expected = made(x, mask=mask & sliding_window(11), attn_bias=bias)
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["alibi", "t5"])
@pytest.mark.parametrize("shape", [(), (N, N), (H, 1, N)])
def test_relative_positions_and_a_bias_compile_as_one_graph(positions: str, shape: tuple[int, ...]) -> None:
    made, x, bias = layer("multihead", causal=True, positions=positions), tensor(B, N, D), tensor(*shape)
    torch.compiler.reset()
    compiled = torch.compile(made, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, attn_bias=bias), made(x, attn_bias=bias), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
@torch.no_grad()
def test_attention_map_broadcasts_values(name: str) -> None:
    made, x = layer(name, causal="causal" in registry.entry(name).card.supports), tensor(B, N, D)
    attention_map, heads = made.attention_map(x), made.num_heads
    weights = attention_map.materialize()
    for shape in ((B, heads), (1, heads), (B, 1), (1, 1)):
        values = tensor(*shape, N, W)
        out = attention_map.apply(values)
        assert out.shape == (B, heads, N, W)
        torch.testing.assert_close(out, weights @ values, rtol=0, atol=1e-10)


@torch.no_grad()
def test_values_of_another_shape_are_refused() -> None:
    attention_map = layer("groupedquery").attention_map(tensor(B, N, D))
    assert isinstance(attention_map, SoftmaxMap)
    assert attention_map.apply(tensor(B, 2, N, W)).shape == (B, H, N, W)  # one head of values per head of keys
    for shape in ((B, 5, N, W), (3, H, N, W), (B, H, N + 1, W), (N, W)):
        with pytest.raises(
            ValueError, match=r"values must have shape \(batch, heads, keys, width\) = \(2, 6, 7, width\)"
        ):
            attention_map.apply(tensor(*shape))
