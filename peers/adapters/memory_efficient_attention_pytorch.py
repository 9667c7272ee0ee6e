"""``Attention`` of memory-efficient-attention-pytorch, with and without buckets."""

from __future__ import annotations

from typing import Any

from memory_efficient_attention_pytorch import Attention as Theirs

from peers.adapters.base import KeyMaskAdapter


class Attention(KeyMaskAdapter):
    """The buckets are small, so that the sequences of the suite need several."""

    def __init__(
        self, dim: int, heads: int = 1, causal: bool = False, dropout: float = 0.0, memory_efficient: bool = True
    ) -> None:
        sizes: dict[str, Any] = {"dim_head": dim // heads, "q_bucket_size": 4, "k_bucket_size": 4}
        options: dict[str, Any] = {"causal": causal, "dropout": dropout, "memory_efficient": memory_efficient}
        super().__init__(Theirs(dim=dim, heads=heads, **sizes, **options))
