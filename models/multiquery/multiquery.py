"""Multi-query attention: all query heads share one key-value head."""

from __future__ import annotations

from typing import Literal

import torch

from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import Positions


class MultiQueryAttention(MultiHeadBase):
    """``head_i = softmax(Q_i Kᵀ / √d_k) V``: h query heads, one key-value head.

    Source: Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need", section 3.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of query heads; it must divide embed_dim unless head_dim is given.
        head_dim: d_k, the width of a head; embed_dim / num_heads by default.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Multi-query attention",
        summary="all query heads share one key-value head: the smallest KV cache",
        paper="Fast Transformer Decoding: One Write-Head is All You Need",
        authors="Shazeer",
        year=2019,
        arxiv="1911.02150",
        kind="exact",
        heads="h query heads, 1 key-value head",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax attention matrices over one set of keys",
        use_case="decoding many sequences: a KV cache of 1 / h of the size",
        supports=("causal", "arbitrary_mask", "attn_bias", "context", "cache", "weights", "equivariant"),
        parent="multihead",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        head_dim: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        positions: Literal["none", "rotary", "alibi", "t5"] | str | Positions = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            num_kv_heads=1,
            head_dim=head_dim,
            causal=causal,
            dropout=dropout,
            bias=bias,
            positions=positions,
            device=device,
            dtype=dtype,
        )
