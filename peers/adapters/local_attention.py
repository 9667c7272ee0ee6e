"""``LocalMHA`` of local-attention."""

from __future__ import annotations

from local_attention.transformer import LocalMHA as Theirs

from peers.adapters.base import KeyMaskAdapter


class LocalMHA(KeyMaskAdapter):
    """Windows of four tokens, with the options that their ``LocalTransformer`` passes."""

    def __init__(self, dim: int, heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__(
            Theirs(dim=dim, dim_head=dim // heads, heads=heads, window_size=4, causal=causal, dropout=dropout)
        )
