"""``torch.nn.MultiheadAttention``, whose masks are True for *do not attend*."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from peers.adapters.base import key_mask

if TYPE_CHECKING:
    from attnlab.models.multihead import MultiAttention


class MultiheadAttention(nn.Module):
    """Passes every mask as ``attn_mask``, (B * H, N, N), the causal mask too: ``is_causal`` is only a hint."""

    def __init__(self, embed_dim: int, num_heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.causal, self.num_heads = causal, num_heads

    @classmethod
    def from_attnlab(cls, ours: MultiAttention) -> MultiheadAttention:
        """The layer with the parameters of ours."""
        layer = cls(ours.embed_dim, ours.num_heads, causal=ours.causal)
        layer.inner = ours.to_torch()
        return layer

    def fastest_call(self, length: int) -> Callable[[Tensor], Tensor]:
        """The call that is timed: without attention weights, causal with the matrix and ``is_causal``."""
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        return lambda x: self.inner(x, x, x, need_weights=False, attn_mask=mask, is_causal=self.causal)[0]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); ``mask`` (B, N, N), True for *attend*."""
        return self.inner(x, x, x, attn_mask=self.masked_out(x, mask), need_weights=False)[0]

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, N)."""
        return self.inner(x, x, x, attn_mask=self.masked_out(x, mask), average_attn_weights=False)[1]

    def masked_out(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """The inverted mask, once per head, combined with the causal mask."""
        length = x.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1) if self.causal else None
        if mask is None:
            return future
        masked_out = ~mask if future is None else ~mask | future
        return masked_out.repeat_interleave(self.num_heads, 0)


class PaddedMultiheadAttention(MultiheadAttention):
    """Passes padding as ``key_padding_mask``, (B, N), and the causal mask as ``attn_mask``."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); ``mask`` (B, N, N) is the same for every query."""
        return self._call(x, mask, need_weights=False)[0]

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, N)."""
        return self._call(x, mask, average_attn_weights=False)[1]

    def _call(self, x: Tensor, mask: Tensor | None, **options: bool) -> tuple[Tensor, Tensor]:
        real, future = key_mask(mask), self.masked_out(x, None)
        padding = None if real is None else ~real
        return self.inner(x, x, x, key_padding_mask=padding, attn_mask=future, is_causal=self.causal, **options)
