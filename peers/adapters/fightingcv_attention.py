"""The layers of fightingcv-attention that take a sequence of vectors."""

from __future__ import annotations

from typing import Any

from fightingcv_attention.attention.ExternalAttention import ExternalAttention as TheirExternal
from fightingcv_attention.attention.MobileViTv2Attention import MobileViTv2Attention as TheirMobile
from fightingcv_attention.attention.MUSEAttention import MUSEAttention as TheirMuse
from fightingcv_attention.attention.SelfAttention import ScaledDotProductAttention as TheirScaled
from fightingcv_attention.attention.SimplifiedSelfAttention import SimplifiedScaledDotProductAttention
from fightingcv_attention.attention.UFOAttention import UFOAttention as TheirUfo
from torch import Tensor

from peers.adapters.base import Adapter


def sizes(dim: int, heads: int, dropout: float) -> dict[str, Any]:
    """The arguments that most of the layers share."""
    return {"d_model": dim, "d_k": dim, "d_v": dim, "h": heads, "dropout": dropout}


class SelfAttention(Adapter):
    """Passes the input as queries, keys and values."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        return self.inner(x, x, x)


class Masked(Adapter):
    """Passes an ``attention_mask``, True for *do not attend*."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); ``mask`` (B, N, N), True for *attend*."""
        return self.inner(x, x, x, attention_mask=None if mask is None else ~mask[:, None])


class ScaledDotProductAttention(Masked):
    """Multi-head attention."""

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__(TheirScaled(**sizes(dim, heads, dropout)))


class SimplifiedAttention(Masked):
    """Multi-head attention without projections of queries, keys and values."""

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__(SimplifiedScaledDotProductAttention(d_model=dim, h=heads, dropout=dropout))


class MUSEAttention(SelfAttention):
    """Attention and convolutions of three sizes in parallel."""

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__(TheirMuse(**sizes(dim, heads, dropout)))


class UFOAttention(SelfAttention):
    """Attention without softmax."""

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__(TheirUfo(**sizes(dim, heads, dropout)))


class ExternalAttention(Adapter):
    """Attends to a learned memory."""

    def __init__(self, dim: int) -> None:
        super().__init__(TheirExternal(d_model=dim, S=8))


class MobileViTv2Attention(Adapter):
    """One context vector for all tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__(TheirMobile(d_model=dim))
