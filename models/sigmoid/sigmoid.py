"""Sigmoid attention: each attention weight depends on its own score only, without a softmax over the keys."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.arithmetic import Arithmetic, Row, sigmoid
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import RowwiseMap, at_least_float32
from attnlab.positions import Positions


class SigmoidAttention(MultiHeadBase):
    """``weight_ij = σ(Q_i K_jᵀ / √d_k - log n_i)``, where n_i is the number of keys that query i attends to.

    Source: Ramapuram et al. 2024, "Theory, Analysis, and Best Practices for Sigmoid Self-Attention", section 3 and the
    bias of section 4. In the paper n is the training length; counted per query, padding and a KV cache do not change
    the output.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Sigmoid attention",
        summary="a sigmoid of each score in place of a softmax over all: the attention weights need not sum to one",
        paper="Theory, Analysis, and Best Practices for Sigmoid Self-Attention",
        authors="Ramapuram et al.",
        year=2024,
        arxiv="2409.04431",
        kind="another operator",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h matrices of independent attention weights between 0 and 1",
        use_case="tasks where a query attends to many positions at once, or to none",
        supports=("causal", "arbitrary_mask", "attn_bias", "context", "cache", "weights", "equivariant"),
        parent="multihead",
        weights="non-negative",
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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, positions=positions, **factory
        )

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None
    ) -> RowwiseMap:
        return RowwiseMap(Q, K, mask, bias, sigmoid_weights, weight_lines=weight_lines)


def sigmoid_weights(scores: Float[Tensor, "B H n m"], permitted: Tensor | None) -> Float[Tensor, "B H n m"]:
    """``σ(score - log n)`` where permitted, 0 elsewhere; at least in float32, as float16 holds no n above 65,504."""
    exact = at_least_float32(scores)
    if permitted is None:
        return torch.sigmoid(exact - exact.new_ones(scores.shape[-1]).sum().log()).to(scores.dtype)
    n = permitted.expand(*permitted.shape[:-1], scores.shape[-1]).sum(-1, keepdim=True).clamp(min=1)
    # σ(-inf) is exactly 0, and one subtraction takes a fifth of the time of masked_fill.
    return torch.sigmoid(exact - torch.where(permitted, n.to(exact.dtype).log(), torch.inf)).to(scores.dtype)


def weight_lines(a: Arithmetic, row: Row) -> None:
    """Add the arithmetic from a score to its weight."""
    n = a.given("n", row.allowed[row.cell.head].sum(), "the number of keys that the query attends to")
    shifted = a.compute("shifted", f"{row.score} - math.log({n})", "the score minus log n")
    sigmoid(a, "weight", shifted, "the attention weight: σ(score - log n), which no other key changes")
