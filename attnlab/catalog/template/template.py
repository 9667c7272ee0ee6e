"""Template: one head of softmax attention. Change the formula, then this line."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.nn.attention import Attention, Card, make_linear
from attnlab.ops.softmax import masked_softmax


class TemplateAttention(Attention):
    """``softmax(Q Kᵀ / √d) V``: the formula of the paper in one line.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.1.

    Args:
        embed_dim: D, the size of the input and output features.
        causal: whether each token attends only to itself and earlier tokens.
        dropout: the dropout probability of the attention weights, in training only.
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Template",
        summary="one head of softmax attention, to be changed",
        paper="Attention Is All You Need",
        authors="Vaswani et al.",
        year=2017,
        arxiv="1706.03762",
        kind="exact",
        heads="1",
        time="n²·d + n·d²",
        memory="n² + n·d",
        representation="one softmax attention matrix",
        use_case="the starting point of a new mechanism",
        supports=("causal", "padding", "segments", "arbitrary_mask", "weights", "equivariant"),
    )

    def __init__(
        self,
        embed_dim: int,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, causal=causal, dropout=dropout)
        self.query = make_linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.key = make_linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.value = make_linear(embed_dim, embed_dim, device=device, dtype=dtype)
        self.output = make_linear(embed_dim, embed_dim, device=device, dtype=dtype)

    def _attention_weights(self, x: Float[Tensor, "B N D"], mask: BoundMask | None) -> Float[Tensor, "B 1 N N"]:
        Q, K = self.query(x), self.key(x)
        scores = Q @ K.mT / math.sqrt(self.embed_dim)  # (B, N, N)
        return masked_softmax(scores.unsqueeze(1), mask)  # the mask includes causal

    def _apply_weights(self, weights: Float[Tensor, "B 1 N N"], x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.output((weights @ self._values(x)).squeeze(1))

    def _values(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B 1 N D"]:
        return self.value(x).unsqueeze(1)

    def _forward(self, x: Float[Tensor, "B N D"], mask: BoundMask | None) -> Float[Tensor, "B N D"]:
        # Materializes the attention weights; a faster form can replace this and is tested against reference.py.
        return self._apply_weights(F.dropout(self._attention_weights(x, mask), self.dropout, self.training), x)
