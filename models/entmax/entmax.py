"""Sparse attention: α-entmax gives most keys a weight of exactly zero, and the scores decide which."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.bias import Bias
from attnlab.ops.entmax import entmax
from attnlab.ops.rowwise import RowwiseMap
from attnlab.positions import Positions


class EntmaxAttention(MultiHeadBase):
    """``weight_j = [(α - 1) s_j - τ]₊^(1 / (α - 1))``, with τ such that they sum to one; α = 2 is sparsemax.

    Source: Peters et al. 2019, "Sparse Sequence-to-Sequence Models", section 3; Martins and Astudillo 2016 for α = 2.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        alpha: above 1, where softmax is the limit, up to 4; the larger, the sparser.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, rotary, alibi or t5, with settings where wanted, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.
    """

    card = Card(
        title="Entmax attention",
        summary="α-entmax in place of softmax: exact zeros for what does not matter",
        paper="Sparse Sequence-to-Sequence Models",
        authors="Peters et al.",
        year=2019,
        arxiv="1905.05702",
        kind="another operator",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h sparse maps whose rows sum to one",
        use_case="maps that are read by people; tasks with few places to look at",
        supports=("causal", "padding", "segments", "arbitrary_mask", "context", "cache", "weights", "equivariant"),
        parent="multihead",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        alpha: float = 1.5,
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
            causal=causal,
            dropout=dropout,
            bias=bias,
            positions=positions,
            device=device,
            dtype=dtype,
        )
        if not 1.0 < alpha <= 4.0:
            raise ValueError(f"alpha must be above 1 (softmax is the limit) and at most 4, not {alpha}")
        self.alpha = alpha

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None
    ) -> RowwiseMap:
        def normalize(scores: Float[Tensor, "B H n m"], permitted: Tensor | None) -> Float[Tensor, "B H n m"]:
            return entmax(scores, self.alpha, permitted)

        return RowwiseMap(Q, K, mask, bias, normalize)
