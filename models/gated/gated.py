"""Gated attention: each token decides how much of each head's answer goes on."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase, OutputGate
from attnlab.positions import Positions


class GatedAttention(MultiHeadBase):
    """``(concat(head_1, ..., head_h) ⊙ σ(x W_G)) W_O``: multi-head attention, and a gate before W_O.

    Source: Qiu et al. 2025, "Gated Attention for Large Language Models: Non-linearity, Sparsity, and
    Attention-Sink-Free", section 2 (position G1).

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        gate: a gate for each number of each head (elementwise), or one a head (headwise).
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, rotary, alibi or t5, with settings where wanted, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.
    """

    card = Card(
        title="Gated attention",
        summary="a sigmoid gate on the heads' answers: a token may take nothing, without a sink to look at",
        paper="Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free",
        authors="Qiu et al.",
        year=2025,
        arxiv="2505.06708",
        kind="exact",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax maps, and a gate a token",
        use_case="deep networks; long sequences, where softmax would look at a sink",
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
        gate: Literal["elementwise", "headwise"] = "elementwise",
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
        if gate not in ("elementwise", "headwise"):
            raise ValueError(f"gate is 'elementwise' or 'headwise', not {gate!r}")
        width = self.head_dim if gate == "elementwise" else 1
        self.gate = OutputGate(embed_dim, num_heads, width, bias=bias, device=device, dtype=dtype)

    def _merge_heads(self, heads: Float[Tensor, "B H N d"], x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        # (concat(heads) ⊙ σ(x W_G)) W_O: what the token that asked lets through
        return super()._merge_heads(self.gate(heads, x), x)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        self.gate.keep_heads(heads)
