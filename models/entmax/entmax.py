"""Entmax attention: sparse attention weights, where the scores decide which are exactly zero."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.arithmetic import Arithmetic, Row
from attnlab.ops.bias import Bias
from attnlab.ops.entmax import entmax
from attnlab.ops.rowwise import RowwiseMap
from attnlab.positions import Positions


class EntmaxAttention(MultiHeadBase):
    """``weight_j = [(α - 1) s_j - τ]₊^(1 / (α - 1))``, with τ such that each row sums to one; α = 2 is sparsemax.

    Source: Peters et al. 2019, "Sparse Sequence-to-Sequence Models", section 3; Martins and Astudillo 2016 for α = 2.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        alpha: α, above 1 (the limit is softmax) and at most 4; a larger α gives more zeros.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Entmax attention",
        summary="α-entmax in place of softmax: most attention weights are exactly zero",
        paper="Sparse Sequence-to-Sequence Models",
        authors="Peters et al.",
        year=2019,
        arxiv="1905.05702",
        kind="another operator",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h sparse attention matrices whose rows sum to one",
        use_case="attention weights that people read; tasks with few relevant positions",
        supports=("causal", "arbitrary_mask", "context", "cache", "weights", "equivariant"),
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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, positions=positions, **factory
        )
        if not 1.0 < alpha <= 4.0:
            raise ValueError(f"alpha must be above 1 (softmax is the limit) and at most 4, not {alpha}")
        self.alpha = alpha

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None
    ) -> RowwiseMap:
        def normalize(scores: Float[Tensor, "B H n m"], permitted: Tensor | None) -> Float[Tensor, "B H n m"]:
            return entmax(scores, self.alpha, permitted)

        return RowwiseMap(Q, K, mask, bias, normalize, weight_lines=self._weight_lines)

    def _weight_lines(self, a: Arithmetic, row: Row) -> None:
        """Add the arithmetic from a score to its weight."""
        alpha, scores = self.alpha - 1, row.scores[row.cell.head].double()
        weights = entmax(scores, self.alpha, row.allowed[row.cell.head])
        largest = weights.argmax()  # its weight gives the threshold
        threshold = alpha * scores[largest] - weights[largest] ** alpha
        z = a.compute("z", f"{alpha!r} * {row.score}", "(α - 1) · score")
        tau = a.given("tau", threshold, "the threshold τ, with which the weights of the row sum to one")
        above = a.compute("above", f"max({z} - {tau}, 0.0)", "what exceeds the threshold")
        a.compute("weight", f"{above} ** {1 / alpha!r}", "the attention weight: to the power of 1 / (α - 1)")
