"""Grouped-query attention: several heads of queries read one head of keys and values."""

from __future__ import annotations

from typing import Literal

import torch

from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import Positions


class GroupedQueryAttention(MultiHeadBase):
    """``head_i = softmax(Q_i K_gᵀ / √d_k) V_g`` with ``g = ⌊i · h_kv / h⌋``: h heads of queries, h_kv of keys.

    Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
    section 2.2.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the heads of queries.
        num_kv_heads: h_kv, the heads of keys and values; it must divide num_heads. As many as num_heads is multi-head
            attention, 1 is multi-query attention.
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
        title="Grouped-query attention",
        summary="several heads of queries share a head of keys and values: a smaller cache",
        paper="GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
        authors="Ainslie et al.",
        year=2023,
        arxiv="2305.13245",
        kind="exact",
        heads="h of queries, h_kv of keys and values",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax maps over h_kv sets of keys",
        use_case="decoding: a cache of h_kv / h of the size",
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
        parent="multiquery",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        num_kv_heads: int = 2,
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
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            causal=causal,
            dropout=dropout,
            bias=bias,
            positions=positions,
            device=device,
            dtype=dtype,
        )
