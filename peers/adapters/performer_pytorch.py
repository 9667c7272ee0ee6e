"""performer-pytorch's "standalone self-attention layer with linear complexity"."""

from __future__ import annotations

from performer_pytorch import SelfAttention as Theirs

from peers.adapters.padded import Padded


class SelfAttention(Padded):
    """With their defaults."""

    def __init__(self, dim: int, heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = Theirs(dim, heads=heads, dim_head=dim // heads, causal=causal, dropout=dropout)
