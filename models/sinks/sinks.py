"""Attention with sinks: a logit in every row takes weight and gives nothing, so that a head may look at nothing."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.bias import Bias
from attnlab.ops.softmax import SoftmaxMap
from attnlab.positions import Positions


class SinkAttention(MultiHeadBase):
    """``weight_ij = exp(s_ij) / (exp(sink) + Σ_j exp(s_ij))`` with ``s = Q Kᵀ / √d_k``, a sink for each head.

    Source: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card", section 2.2 (learned); Miller 2023, "Attention Is Off
    By One" (the sink fixed at 0).

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        sink: learned, a logit for each head that starts at 0; or zero, which is softmax off by one.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, rotary, alibi or t5, with settings where wanted, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.
    """

    card = Card(
        title="Attention with sinks",
        summary="a learned logit in every softmax takes the weight that a head does not want to give",
        paper="gpt-oss-120b & gpt-oss-20b Model Card",
        authors="OpenAI",
        year=2025,
        arxiv="2508.10925",
        kind="another operator",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax maps whose rows may sum to less than one",
        use_case="long or windowed contexts, where there may be nothing to look at",
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
        sink: Literal["learned", "zero"] = "learned",
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
        if sink not in ("learned", "zero"):
            raise ValueError(f"sink is 'learned' or 'zero', not {sink!r}")
        logits = torch.zeros(num_heads, device=device, dtype=dtype)
        self.sink = nn.Parameter(logits, requires_grad=sink == "learned")

    def reset_parameters(self) -> None:
        """Draw the projections anew; the sinks start at 0."""
        super().reset_parameters()
        nn.init.zeros_(self.sink)

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None
    ) -> SoftmaxMap:
        # softmax([sink | Q Kᵀ / √d_k]) without its first column
        return SoftmaxMap(Q, K, mask, bias, sink=self.sink)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        self.sink = nn.Parameter(self.sink[heads], self.sink.requires_grad)
