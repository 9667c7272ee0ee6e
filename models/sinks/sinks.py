"""Attention with sinks: an extra logit in every softmax has no value, so that a row may sum to less than one."""

from __future__ import annotations

from typing import Any, Literal

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
    """``weight_ij = exp(s_ij) / (exp(sink) + Σ_j exp(s_ij))`` with ``s = Q Kᵀ / √d_k`` and one sink per head.

    Source: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card", section 2.2 (learned); Miller 2023, "Attention Is Off
    By One" (the sink fixed at 0).

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        sink: "learned", one logit per head, initialized to 0; or "zero", which is softmax off by one.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Attention with sinks",
        summary="a learned logit in every softmax takes attention weight that goes to no key",
        paper="gpt-oss-120b & gpt-oss-20b Model Card",
        authors="OpenAI",
        year=2025,
        arxiv="2508.10925",
        kind="another operator",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax matrices whose rows may sum to less than one",
        use_case="long or windowed contexts, where a query may have no relevant key",
        supports=("causal", "arbitrary_mask", "attn_bias", "context", "cache", "weights", "equivariant"),
        parent="multihead",
        weights="non-negative",
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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, positions=positions, **factory
        )
        if sink not in ("learned", "zero"):
            raise ValueError(f"sink must be 'learned' or 'zero', not {sink!r}")
        logits = torch.zeros(num_heads, **factory)
        self.sink = nn.Parameter(logits, requires_grad=sink == "learned")

    def reset_parameters(self) -> None:
        """Initialize the projections at random and the sinks to 0."""
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
