"""Multi-query attention: all heads of queries read one head of keys and values."""

from __future__ import annotations

from typing import Literal

import torch

from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import Positions


class MultiQueryAttention(MultiHeadBase):
    """``head_i = softmax(Q_i Kᵀ / √d_k) V``: h heads of queries, one of keys and values.

    Source: Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need", section 3.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the heads of queries; it must divide embed_dim where head_dim is not given.
        head_dim: d_k, the width of a head; embed_dim / num_heads where not given.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, rotary, alibi or t5, with settings where wanted, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.
    """

    card = Card(
        title="Multi-query attention",
        summary="all heads of queries share one head of keys and values: the smallest cache of keys",
        paper="Fast Transformer Decoding: One Write-Head is All You Need",
        authors="Shazeer",
        year=2019,
        arxiv="1911.02150",
        kind="exact",
        heads="h of queries, 1 of keys and values",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax maps over one set of keys",
        use_case="decoding many sequences: a cache of 1 / h of the size",
        supports=(
            "causal",
            "padding",
            "segments",
            "arbitrary_mask",
            "attn_bias",
            "context",
            "cache",
            "weights",
            "equivariant",
        ),
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
