"""memory-efficient-attention-pytorch's ``Attention``, in buckets or, "to test against", without."""

from __future__ import annotations

from memory_efficient_attention_pytorch import Attention as Theirs

from peers.adapters.padded import Padded


class Attention(Padded):
    """Buckets so small that several are needed."""

    def __init__(
        self, dim: int, heads: int = 1, causal: bool = False, dropout: float = 0.0, memory_efficient: bool = True
    ) -> None:
        super().__init__()
        self.inner = Theirs(
            dim=dim,
            dim_head=dim // heads,
            heads=heads,
            causal=causal,
            dropout=dropout,
            memory_efficient=memory_efficient,
            q_bucket_size=4,
            k_bucket_size=4,
        )
