"""A mechanism composed of the shared parts passes the conformance suite, and matches its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from mechanisms import INDEPENDENT_OF_OPTIONS
from torch import Tensor

from attnlab import KVCache, check_attention
from attnlab.masks import BoundMask
from attnlab.models.multihead import MultiAttention
from attnlab.models.multihead.reference import masked_softmax, merge_heads, project_qkv, split_heads
from attnlab.nn.card import Card
from attnlab.nn.multihead import MultiHeadBase, OutputGate, QKNorm
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.softmax import SoftmaxMap


class Composed(MultiHeadBase):
    """Normalized queries and keys, capped scores, a gate on the heads, one key head, and a head_dim."""

    card: Card = MultiAttention.card

    def __init__(
        self, embed_dim: int, num_heads: int = 6, *, device: Any = None, dtype: Any = None, **options: Any
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        super().__init__(embed_dim, num_heads, **{"num_kv_heads": 1, "head_dim": 6, **options}, **factory)
        self.norm = QKNorm(self.head_dim, **factory)
        self.gate = OutputGate(embed_dim, num_heads, self.head_dim, **factory)

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project_qkv(x, context)
        return (*self.norm(Q, K), V)

    def _attention_map(self, Q: Tensor, K: Tensor, mask: BoundMask | None, bias: Any) -> AttentionMap:
        return SoftmaxMap(Q, K, mask, bias, softcap=0.8)

    def _merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        return super()._merge_heads(self.gate(heads, x), x)


def reference(
    layer: Composed,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads, layer.num_kv_heads)
    Q, K = (
        t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        for t, norm in ((Q, layer.norm.query), (K, layer.norm.key))
    )
    scores = 0.8 * (Q @ K.mT / math.sqrt(layer.head_dim) / 0.8).tanh()
    heads = masked_softmax(scores if attn_bias is None else scores + attn_bias, mask) @ V
    gates = split_heads(layer.gate.projection(x).sigmoid(), layer.num_heads)
    out = merge_heads(layer.output, heads * gates, mask)
    return out if K.shape[2] else torch.zeros_like(out)


@pytest.mark.slow
def test_a_composition_passes_the_conformance_suite() -> None:
    report = check_attention(Composed, fast=True, reference=reference, skip=INDEPENDENT_OF_OPTIONS)
    assert report["matches_reference_gradients"].outcome == "pass"
    assert report["cache_matches_full_pass"].outcome == "pass"
    check_attention(Composed, only=["export_matches_eager"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"num_kv_heads": 4},
            ValueError,
            r"num_kv_heads \(4\) must divide num_heads \(6\); try num_kv_heads=2, 3 or 6",
        ),
        ({"num_kv_heads": 7}, ValueError, r"num_kv_heads \(7\) must divide num_heads \(6\)"),
        ({"num_kv_heads": 0}, ValueError, "num_kv_heads must be at least 1, not 0"),
        ({"num_kv_heads": -2}, ValueError, "num_kv_heads must be at least 1, not -2"),
        ({"num_kv_heads": 2.0}, TypeError, "num_kv_heads must be an integer, not 2.0"),
        ({"num_kv_heads": True}, TypeError, "num_kv_heads must be an integer, not True"),
        ({"head_dim": 0}, ValueError, "head_dim must be at least 1, not 0"),
        ({"head_dim": 1.5}, TypeError, "head_dim must be an integer, not 1.5"),
        ({"head_dim": True}, TypeError, "head_dim must be an integer, not True"),
    ],
)
def test_invalid_heads_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$" if "try" in message else f"^{message}"):
        Composed(12, 6, **options)


@torch.no_grad()
def test_shared_heads_of_any_width() -> None:
    layer, cache = Composed(10, 3, head_dim=7, causal=True), KVCache(9)
    assert layer.qkv.weight.shape == (5 * 7, 10)
    assert layer.output.weight.shape == (10, 3 * 7)
    assert layer(torch.randn(2, 5, 10), cache=cache).shape == (2, 5, 10)
    assert cache.bytes_per_token == 2 * 2 * 7 * 4  # items, keys and values, width, bytes
    assert "num_kv_heads=1, head_dim=7" in repr(layer)
    assert "num_kv_heads" not in repr(MultiAttention(12, 3))
