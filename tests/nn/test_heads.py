"""Mechanisms composed of shared parts: each passes the conformance suite and matches its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnlab import KVCache, check_attention
from attnlab.masks import BoundMask
from attnlab.models.multihead import MultiAttention
from attnlab.models.multihead.reference import merge_heads, project_qkv, split_heads
from attnlab.nn.attention import Attention
from attnlab.nn.card import Card
from attnlab.nn.multihead import MultiHeadBase, OutputGate, QKNorm
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.softmax import SoftmaxMap


class Normed(MultiHeadBase):
    """Normalized queries and keys."""

    card: Card = MultiAttention.card

    def __init__(
        self, embed_dim: int, num_heads: int = 8, *, device: Any = None, dtype: Any = None, **options: Any
    ) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype, **options)
        self.norm = QKNorm(self.head_dim, device=device, dtype=dtype)

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project_qkv(x, context)
        return (*self.norm(Q, K), V)


class Capped(MultiHeadBase):
    """Capped scores."""

    card: Card = MultiAttention.card

    def _attention_map(self, Q: Tensor, K: Tensor, mask: BoundMask | None, bias: Tensor | None) -> AttentionMap:
        return SoftmaxMap(Q, K, mask, bias, softcap=0.8)


class Sunk(MultiHeadBase):
    """A learned sink per head; the weights sum to less than one."""

    card: Card = MultiAttention.card

    def __init__(
        self, embed_dim: int, num_heads: int = 8, *, device: Any = None, dtype: Any = None, **options: Any
    ) -> None:
        super().__init__(embed_dim, num_heads, device=device, dtype=dtype, **options)
        self.sink = nn.Parameter(torch.zeros(num_heads, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.sink)

    def _attention_map(self, Q: Tensor, K: Tensor, mask: BoundMask | None, bias: Tensor | None) -> AttentionMap:
        return SoftmaxMap(Q, K, mask, bias, sink=self.sink)


class Gated(Normed):
    """Normalized queries and keys, a gate on the heads, one key head, and a head_dim."""

    def __init__(
        self, embed_dim: int, num_heads: int = 6, *, device: Any = None, dtype: Any = None, **options: Any
    ) -> None:
        super().__init__(embed_dim, num_heads, num_kv_heads=1, head_dim=6, device=device, dtype=dtype, **options)
        self.gate = OutputGate(embed_dim, num_heads, self.head_dim, device=device, dtype=dtype)

    def _merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        return super()._merge_heads(self.gate(heads, x), x)


def reference(
    layer: Any, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None, context: Tensor | None = None
) -> Tensor:
    """The formula of all four."""
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads, layer.num_kv_heads)
    if isinstance(layer, Normed):
        Q, K = (
            t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
            for t, norm in ((Q, layer.norm.query), (K, layer.norm.key))
        )
    scores = Q @ K.mT / math.sqrt(layer.head_dim)
    if isinstance(layer, Capped):
        scores = 0.8 * (scores / 0.8).tanh()
    exponentials = (scores if attn_bias is None else scores + attn_bias).exp()
    if mask is not None:
        exponentials = exponentials * mask
    total = exponentials.sum(-1, keepdim=True)
    if isinstance(layer, Sunk):
        total = total + layer.sink.exp()[:, None, None]
    heads = exponentials / total.clamp(min=1e-300) @ V
    if isinstance(layer, Gated):
        gate = layer.gate.projection
        heads = heads * split_heads((x @ gate.weight.T + gate.bias).sigmoid(), layer.num_heads)
    out = merge_heads(layer.output, heads, mask)
    return out if K.shape[2] else torch.zeros_like(out)


NOT_ONE = {"weights_sum_to_one", "attn_bias_adds_to_scores"}
"""Checks that a sink does not pass."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Capped, Sunk, Gated])
def test_a_composition_passes_the_conformance_suite(kind: type[Attention]) -> None:
    report = check_attention(kind, fast=True, reference=reference, skip=NOT_ONE if kind is Sunk else ())
    assert report["matches_reference_gradients"].outcome == "pass"
    assert report["cache_matches_full_pass"].outcome == "pass"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Capped, Sunk, Gated])
def test_a_composition_compiles_and_exports(kind: type[Attention], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "attnlab.checks.families.export.shutil.which", lambda command: None
    )  # export without compiling C++
    check_attention(kind, only=["compile_matches_eager", "export_matches_eager"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"num_kv_heads": 4},
            ValueError,
            r"num_kv_heads \(4\) must divide num_heads \(6\); try num_kv_heads=2, 3 or 6",
        ),
        ({"num_kv_heads": 0}, ValueError, "num_kv_heads must be at least 1, not 0"),
        ({"num_kv_heads": 2.0}, TypeError, "num_kv_heads must be an integer, not 2.0"),
        ({"head_dim": 0}, ValueError, "head_dim must be at least 1, not 0"),
        ({"head_dim": True}, TypeError, "head_dim must be an integer, not True"),
    ],
)
def test_invalid_heads_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Capped(12, 6, **options)


def test_head_dim_is_independent_of_embed_dim() -> None:
    layer = Capped(10, 3, head_dim=7, num_kv_heads=1)
    assert layer.qkv.weight.shape == (5 * 7, 10)
    assert layer.output.weight.shape == (10, 3 * 7)
    assert layer(torch.randn(2, 5, 10)).shape == (2, 5, 10)
    assert "num_kv_heads=1, head_dim=7" in repr(layer)


@torch.no_grad()
def test_shared_heads_are_cached_once() -> None:
    layer, cache = Capped(12, 6, num_kv_heads=2, causal=True), KVCache(9)
    layer(torch.randn(3, 5, 12), cache=cache)
    assert cache.bytes_per_token == 3 * 2 * 2 * 2 * 4  # items, keys and values, heads, width, bytes
