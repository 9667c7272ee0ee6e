"""``SelfAttention`` of performer-pytorch."""

from __future__ import annotations

from performer_pytorch import SelfAttention as Theirs

from peers.adapters.base import KeyMaskAdapter


class SelfAttention(KeyMaskAdapter):
    """The "standalone self-attention layer", with its default options."""

    def __init__(self, dim: int, heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__(Theirs(dim, heads=heads, dim_head=dim // heads, causal=causal, dropout=dropout))
