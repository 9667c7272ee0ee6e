"""Additive attention: the first of all, where a small network scores each query and key."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import RowwiseMap
from attnlab.ops.softmax import masked_softmax
from attnlab.positions import Positions


class AdditiveAttention(MultiHeadBase):
    """``weight_ij = softmax_j(v · tanh(Q_i + K_j))``: a hidden layer of width d_k for every pair.

    Source: Bahdanau et al. 2014, "Neural Machine Translation by Jointly Learning to Align and Translate", appendix
    A.1.2; here with heads, and between the tokens of one sequence too.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, alibi or t5, with settings where wanted (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.
    """

    card = Card(
        title="Additive attention",
        summary="a small network scores each pair: v · tanh(query + key)",
        paper="Neural Machine Translation by Jointly Learning to Align and Translate",
        authors="Bahdanau et al.",
        year=2014,
        arxiv="1409.0473",
        kind="exact",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax maps of learned scores",
        use_case="short sequences; understanding where attention comes from",
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
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        positions: Literal["none", "alibi", "t5"] | str | Positions = "none",
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
        if self.positions.name == "rotary":
            raise ValueError(
                "rotary positions turn what is multiplied, and here queries and keys are added; take alibi"
            )
        self.score = nn.Parameter(torch.empty(num_heads, self.head_dim, device=device, dtype=dtype))  # v
        self._reset_score()

    def reset_parameters(self) -> None:
        """Draw the projections and v anew."""
        super().reset_parameters()
        self._reset_score()

    def _reset_score(self) -> None:
        # A score has variance 1 at the start, as a scaled dot product has.
        nn.init.normal_(self.score, std=self.head_dim**-0.5)

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None
    ) -> RowwiseMap:
        def score(Q: Float[Tensor, "B H n d"], K: Float[Tensor, "B H m d"]) -> Float[Tensor, "B H n m"]:
            hidden = torch.tanh(Q.unsqueeze(3) + K.unsqueeze(2))  # (B, H, n, m, d)
            return torch.einsum("bhnmd,hd->bhnm", hidden, self.score.to(hidden.dtype))

        return RowwiseMap(Q, K, mask, bias, masked_softmax, score_fn=score, score_cost=self.head_dim)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        self.score = nn.Parameter(self.score[heads], self.score.requires_grad)
