"""fightingcv-attention, a collection for vision; these of it take a sequence of vectors."""

from __future__ import annotations

from fightingcv_attention.attention.ExternalAttention import ExternalAttention as TheirExternal
from fightingcv_attention.attention.MobileViTv2Attention import MobileViTv2Attention as TheirMobile
from fightingcv_attention.attention.MUSEAttention import MUSEAttention as TheirMuse
from fightingcv_attention.attention.SelfAttention import ScaledDotProductAttention as TheirScaled
from fightingcv_attention.attention.SimplifiedSelfAttention import SimplifiedScaledDotProductAttention
from fightingcv_attention.attention.UFOAttention import UFOAttention as TheirUfo
from torch import Tensor, nn


class Layer(nn.Module):
    """Asked with queries, keys and values that are the same, as on their page."""

    inner: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        return self.inner(x, x, x)


class Masked(Layer):
    """Takes a mask, (B, 1, N, N) here; theirs says True for *may not look*."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to the same; ``mask`` (B, N, N)."""
        return self.inner(x, x, x, attention_mask=None if mask is None else ~mask[:, None])


class ScaledDotProductAttention(Masked):
    """Attention Is All You Need."""

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = TheirScaled(d_model=dim, d_k=dim, d_v=dim, h=heads, dropout=dropout)


class SimplifiedAttention(Masked):
    """The same without projections of queries, keys and values."""

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = SimplifiedScaledDotProductAttention(d_model=dim, h=heads, dropout=dropout)


class MUSEAttention(Layer):
    """Attention beside convolutions of three qkv_sizes."""

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = TheirMuse(d_model=dim, d_k=dim, d_v=dim, h=heads, dropout=dropout)


class UFOAttention(Layer):
    """Without a softmax."""

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = TheirUfo(d_model=dim, d_k=dim, d_v=dim, h=heads, dropout=dropout)


class Alone(Layer):
    """Asked with the sequence alone."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to the same."""
        return self.inner(x)


class ExternalAttention(Alone):
    """Looks at a memory; the sequence only normalizes."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = TheirExternal(d_model=dim, S=8)


class MobileViTv2Attention(Alone):
    """One context for all tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = TheirMobile(d_model=dim)
