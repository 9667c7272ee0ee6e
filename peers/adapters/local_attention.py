"""local-attention's layer of heads: a window that looks at the one before it, and where not causal after it."""

from __future__ import annotations

from local_attention.transformer import LocalMHA as Theirs

from peers.adapters.padded import Padded


class LocalMHA(Padded):
    """As their ``LocalTransformer`` makes it."""

    def __init__(self, dim: int, heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = Theirs(dim=dim, dim_head=dim // heads, heads=heads, window_size=4, causal=causal, dropout=dropout)
