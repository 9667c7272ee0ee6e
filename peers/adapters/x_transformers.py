"""``Attention`` of x-transformers; its masks are True for *attend*."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from x_transformers.x_transformers import Attention as Theirs

from peers.adapters.base import Adapter, KeyMaskAdapter, split_projection

if TYPE_CHECKING:
    from attnlab.models.multihead import MultiAttention


def build(dim: int, heads: int, causal: bool, dropout: float, options: dict[str, Any]) -> Theirs:
    """Their layer with heads that divide the width."""
    return Theirs(dim, dim_head=dim // heads, heads=heads, causal=causal, dropout=dropout, **options)


class Attention(Adapter):
    """Passes every mask as ``attn_mask``, (B, 1, N, N); ``options`` are of its constructor: flash, kv_heads, ..."""

    def __init__(self, dim: int, heads: int = 1, causal: bool = False, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(build(dim, heads, causal, dropout, options))
        self.num_heads = heads

    @classmethod
    def from_attnlab(cls, ours: MultiAttention) -> Attention:
        """The layer with the weights of ours and ``flash=True``; it has no bias, so ours has to be zero."""
        layer = cls(ours.embed_dim, ours.num_heads, causal=ours.causal, flash=True)
        split_projection(ours.qkv, [layer.inner.to_q, layer.inner.to_k, layer.inner.to_v])
        split_projection(ours.output, [layer.inner.to_out])
        return layer

    def fastest_call(self, length: int) -> Callable[[Tensor], Tensor]:
        """The call that is timed."""
        return self.inner

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); ``mask`` (B, N, N), True for *attend*."""
        return self.inner(x, attn_mask=None if mask is None else mask[:, None])


class AttentionWithWeights(Attention):
    """Returns the attention weights from the intermediates."""

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, N)."""
        attn_mask = None if mask is None else mask[:, None]
        return self.inner(x, attn_mask=attn_mask, return_intermediates=True)[1].post_softmax_attn


class PaddedAttention(KeyMaskAdapter):
    """Passes padding as ``mask``."""

    def __init__(self, dim: int, heads: int = 1, causal: bool = False, dropout: float = 0.0, **options: Any) -> None:
        super().__init__(build(dim, heads, causal, dropout, options))
        self.num_heads = heads
