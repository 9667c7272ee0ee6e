"""Grouped-query attention: groups of query heads share a key-value head."""

from __future__ import annotations

from typing import Literal

import torch

from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import Positions


class GroupedQueryAttention(MultiHeadBase):
    """``head_i = softmax(Q_i K_gᵀ / √d_k) V_g`` with ``g = ⌊i · h_kv / h⌋``: h query heads, h_kv key-value heads.

    Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
    section 2.2.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of query heads.
        num_kv_heads: h_kv, the number of key-value heads; it must divide num_heads. num_heads gives multi-head
            attention, 1 gives multi-query attention.
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
        title="Grouped-query attention",
        summary="groups of query heads share a key-value head: a smaller KV cache",
        paper="GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints",
        authors="Ainslie et al.",
        year=2023,
        arxiv="2305.13245",
        kind="exact",
        heads="h query heads, h_kv key-value heads",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax attention matrices over h_kv sets of keys",
        use_case="decoding: a KV cache of h_kv / h of the size",
        supports=("causal", "arbitrary_mask", "attn_bias", "context", "cache", "weights", "equivariant"),
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
