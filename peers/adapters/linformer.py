"""``LinformerSelfAttention`` of linformer."""

from __future__ import annotations

from linformer import LinformerSelfAttention as Theirs

from peers.adapters.base import Adapter


class LinformerSelfAttention(Adapter):
    """At most 300 tokens, projected to five; no mask, never causal."""

    def __init__(self, dim: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__(Theirs(dim, seq_len=300, heads=heads, k=5, dropout=dropout))
