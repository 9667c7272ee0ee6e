"""The layers of attnhut: "you build it with ints and call it on a (batch, seq, dim) tensor"."""

from __future__ import annotations

import attnhut
from torch import Tensor

from peers.adapters.base import Adapter, key_mask


class Masked(Adapter):
    """Passes a mask as ``attn_mask``, "broadcastable to (batch, num_heads, seq, seq)"."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); ``mask`` (B, N, N), True for *attend*."""
        return self.inner(x, attn_mask=None if mask is None else mask[:, None])


class StandardAttention(Masked):
    """Multi-head attention."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__(attnhut.StandardAttention(dim, num_heads, causal=causal, dropout=dropout))


class GroupedQueryAttention(Masked):
    """One key and value head."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__(attnhut.GroupedQueryAttention(dim, num_heads, 1, causal=causal, dropout=dropout))


class MultiHeadLatentAttention(Masked):
    """Keys and values from one latent vector."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False) -> None:
        super().__init__(attnhut.MultiHeadLatentAttention(dim, num_heads, causal=causal))


class BigBirdAttention(Adapter):
    """Global, window and random blocks of two tokens."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False) -> None:
        sizes = {"block_size": 2, "num_window_blocks": 3, "num_random_blocks": 1, "num_global_blocks": 1}
        super().__init__(attnhut.BigBirdAttention(dim, num_heads, causal=causal, **sizes))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); ``mask`` (B, N, N) is the same for every query."""
        return self.inner(x, key_padding_mask=key_mask(mask))


class DifferentialAttention(Adapter):
    """The difference of two softmax attention matrices."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False) -> None:
        super().__init__(attnhut.DifferentialAttention(dim, num_heads, causal=causal))


class DeepSeekSparseAttention(Adapter):
    """Three keys per query, selected by an indexer."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False) -> None:
        super().__init__(attnhut.DeepSeekSparseAttention(dim, num_heads, top_k=3, causal=causal))


class DeltaAttention(Adapter):
    """A window with a correction at every third query; always causal."""

    causal = True

    def __init__(self, dim: int, num_heads: int = 1) -> None:
        super().__init__(attnhut.DeltaAttention(dim, num_heads, window=3, sink=1, stride=3))


class CompressedSparseAttention(Adapter):
    """Three selected entries of four tokens each, and a window; always causal."""

    causal = True

    def __init__(self, dim: int, num_heads: int = 1) -> None:
        super().__init__(attnhut.CompressedSparseAttention(dim, num_heads, compression_rate=4, top_k=3, window=3))


class HeavilyCompressedAttention(Adapter):
    """All entries of four tokens each, and a window; always causal."""

    causal = True

    def __init__(self, dim: int, num_heads: int = 1) -> None:
        super().__init__(attnhut.HeavilyCompressedAttention(dim, num_heads, compression_rate=4, window=3))


class MiniMaxSparseAttention(Adapter):
    """Two blocks of four tokens, selected by an index; always causal."""

    causal = True

    def __init__(self, dim: int, num_heads: int = 1) -> None:
        super().__init__(attnhut.MiniMaxSparseAttention(dim, num_heads, 1, block_size=4, top_k=2))
