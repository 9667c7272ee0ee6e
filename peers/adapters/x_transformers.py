"""x-transformers' ``Attention``: an ``attn_mask``, or a ``mask`` of the real tokens. True is *may look*, as here."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from x_transformers.x_transformers import Attention as Theirs

from peers.adapters.padded import Padded


def theirs(dim: int, heads: int, causal: bool, dropout: float, options: dict[str, Any]) -> nn.Module:
    """Their layer, with heads that divide the width."""
    return Theirs(dim, dim_head=dim // heads, heads=heads, causal=causal, dropout=dropout, **options)


class Attention(nn.Module):
    """Any mask goes in as ``attn_mask``, (B, 1, N, N); ``options`` are theirs: flash, sigmoid, kv_heads, ..."""

    def __init__(self, dim: int, heads: int = 1, causal: bool = False, dropout: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.inner, self.num_heads = theirs(dim, heads, causal, dropout, options), heads

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to the same; ``mask`` (B, N, N)."""
        return self.inner(x, attn_mask=None if mask is None else mask[:, None])


class AttentionWithWeights(Attention):
    """Shows the map that it keeps among its intermediates."""

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, N)."""
        given = None if mask is None else mask[:, None]
        return self.inner(x, attn_mask=given, return_intermediates=True)[1].post_softmax_attn


class PaddedAttention(Padded):
    """Padding goes in as ``mask``."""

    def __init__(self, dim: int, heads: int = 1, causal: bool = False, dropout: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.inner, self.num_heads = theirs(dim, heads, causal, dropout, options), heads
