"""attnhut, a collection: "you build it with ints and call it on a (batch, seq, dim) tensor"."""

from __future__ import annotations

import attnhut
from torch import Tensor, nn

from peers.adapters.padded import Padded


class Masked(nn.Module):
    """Their ``attn_mask``, "additive or boolean, broadcastable to (batch, num_heads, seq, seq)"."""

    inner: nn.Module

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to the same; ``mask`` (B, N, N), True for *may look*."""
        return self.inner(x, attn_mask=None if mask is None else mask[:, None])


class StandardAttention(Masked):
    """Full multi-head attention."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = attnhut.StandardAttention(dim, num_heads, causal=causal, dropout=dropout)


class GroupedQueryAttention(Masked):
    """Heads of keys and values shared in groups."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = attnhut.GroupedQueryAttention(dim, num_heads, 1, causal=causal, dropout=dropout)


class MultiHeadLatentAttention(Masked):
    """Keys and values out of one latent."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False) -> None:
        super().__init__()
        self.inner = attnhut.MultiHeadLatentAttention(dim, num_heads, causal=causal)


class BigBirdAttention(Padded):
    """Global, window and random blocks of two tokens."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False) -> None:
        super().__init__()
        sizes = {"block_size": 2, "num_window_blocks": 3, "num_random_blocks": 1, "num_global_blocks": 1}
        self.inner = attnhut.BigBirdAttention(dim, num_heads, causal=causal, **sizes)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to the same; ``mask`` (B, N, N) is the same for every query."""
        return self.inner(x, key_padding_mask=None if mask is None else mask.any(1))


class Plain(nn.Module):
    """One that takes no mask."""

    inner: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        return self.inner(x)


class DifferentialAttention(Plain):
    """Two maps, one subtracted."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False) -> None:
        super().__init__()
        self.inner = attnhut.DifferentialAttention(dim, num_heads, causal=causal)


class DeepSeekSparseAttention(Plain):
    """The keys that an indexer chooses, three a query."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False) -> None:
        super().__init__()
        self.inner = attnhut.DeepSeekSparseAttention(dim, num_heads, top_k=3, causal=causal)


class DeltaAttention(Plain):
    """A window, corrected at every third query; always causal."""

    causal = True

    def __init__(self, dim: int, num_heads: int = 1) -> None:
        super().__init__()
        self.inner = attnhut.DeltaAttention(dim, num_heads, window=3, sink=1, stride=3)


class CompressedSparseAttention(Plain):
    """Entries of four tokens, three chosen, beside a window; always causal."""

    causal = True

    def __init__(self, dim: int, num_heads: int = 1) -> None:
        super().__init__()
        self.inner = attnhut.CompressedSparseAttention(dim, num_heads, compression_rate=4, top_k=3, window=3)


class HeavilyCompressedAttention(Plain):
    """Entries of four tokens beside a window; always causal."""

    causal = True

    def __init__(self, dim: int, num_heads: int = 1) -> None:
        super().__init__()
        self.inner = attnhut.HeavilyCompressedAttention(dim, num_heads, compression_rate=4, window=3)


class MiniMaxSparseAttention(Plain):
    """Two blocks of four tokens, chosen by an index; always causal."""

    causal = True

    def __init__(self, dim: int, num_heads: int = 1) -> None:
        super().__init__()
        self.inner = attnhut.MiniMaxSparseAttention(dim, num_heads, 1, block_size=4, top_k=2)
