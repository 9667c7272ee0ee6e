"""``torch.nn.MultiheadAttention``, asked as its page says: masks say True for *may not look*, weights by head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """Every mask goes in as ``attn_mask``, (B * H, N, N); causal is a mask as well, as ``is_causal`` is but a hint."""

    def __init__(self, embed_dim: int, num_heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.causal, self.num_heads = causal, num_heads

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to the same; ``mask`` (B, N, N), True for *may look*."""
        return self.inner(x, x, x, attn_mask=self.forbidden(x, mask), need_weights=False)[0]

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, N)."""
        return self.inner(x, x, x, attn_mask=self.forbidden(x, mask), average_attn_weights=False)[1]

    def forbidden(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask upside down and once a head, with the future in it."""
        length = x.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1) if self.causal else None
        if mask is None:
            return future
        forbidden = ~mask if future is None else ~mask | future
        return forbidden.repeat_interleave(self.num_heads, 0)


class PaddedMultiheadAttention(MultiheadAttention):
    """Padding goes in as ``key_padding_mask``, (B, N), beside the causal ``attn_mask``."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to the same; ``mask`` (B, N, N) is the same for every query."""
        return self._asked(x, mask, need_weights=False)[0]

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, N)."""
        return self._asked(x, mask, average_attn_weights=False)[1]

    def _asked(self, x: Tensor, mask: Tensor | None, **options: bool) -> tuple[Tensor, Tensor]:
        padding = None if mask is None else ~mask.any(1)
        future = self.forbidden(x, None)
        return self.inner(x, x, x, key_padding_mask=padding, attn_mask=future, is_causal=future is not None, **options)
