"""Sigmoid attention: each key is judged by itself, and none has to win."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import RowwiseMap, at_least_float32
from attnlab.positions import Positions


class SigmoidAttention(MultiHeadBase):
    """``weight_ij = σ(Q_i K_jᵀ / √d_k - log n_i)``, where n_i is how many keys query i may look at.

    Source: Ramapuram et al. 2024, "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", section 3 and the
    bias of section 4. The paper's n is the length that is trained on; counted by query it makes padding and steps with
    a cache exact.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, rotary, alibi or t5, with settings where wanted, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.
    """

    card = Card(
        title="Sigmoid attention",
        summary="a sigmoid for each score in place of a softmax over all: weights need not sum to one",
        paper="Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
        authors="Ramapuram et al.",
        year=2024,
        arxiv="2409.04431",
        kind="another operator",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h maps of independent weights from 0 to 1",
        use_case="looking at many places at once, or at none",
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

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None
    ) -> RowwiseMap:
        return RowwiseMap(Q, K, mask, bias, sigmoids)


def sigmoids(scores: Float[Tensor, "B H n m"], permitted: Tensor | None) -> Float[Tensor, "B H n m"]:
    """``σ(score - log n)`` where it is permitted, 0 elsewhere; in float32 at least: float16 holds no n above 65,504."""
    exact = at_least_float32(scores)
    if permitted is None:
        return torch.sigmoid(exact - exact.new_ones(scores.shape[-1]).sum().log()).to(scores.dtype)
    count = permitted.expand(*permitted.shape[:-1], scores.shape[-1]).sum(-1, keepdim=True)
    weights = torch.sigmoid(exact - count.clamp(min=1).to(exact.dtype).log())
    return weights.masked_fill(~permitted, 0.0).to(scores.dtype)
