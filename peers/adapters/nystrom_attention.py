"""``NystromAttention`` of nystrom-attention."""

from __future__ import annotations

from nystrom_attention import NystromAttention as Theirs

from peers.adapters.base import KeyMaskAdapter


class NystromAttention(KeyMaskAdapter):
    """Four landmarks."""

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__(Theirs(dim=dim, dim_head=dim // heads, heads=heads, num_landmarks=4, dropout=dropout))
