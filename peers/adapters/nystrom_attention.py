"""nystrom-attention's ``NystromAttention``: as many landmarks as divide the sequence."""

from __future__ import annotations

from nystrom_attention import NystromAttention as Theirs

from peers.adapters.padded import Padded


class NystromAttention(Padded):
    """With four landmarks."""

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = Theirs(dim=dim, dim_head=dim // heads, heads=heads, num_landmarks=4, dropout=dropout)
