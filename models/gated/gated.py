"""Gated attention: a sigmoid gate, computed from the token, on the output of each head."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.nn.attention import Card
from attnlab.nn.multihead import MultiHeadBase, OutputGate
from attnlab.positions import Positions


class GatedAttention(MultiHeadBase):
    """``(concat(head_1, ..., head_h) ⊙ σ(x W_G)) W_O``: multi-head attention with a gate before W_O.

    Source: Qiu et al. 2025, "Gated Attention for Large Language Models: Non-linearity, Sparsity, and
    Attention-Sink-Free", section 2 (position G1).

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        gate: one gate per channel (elementwise) or one per head (headwise).
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Gated attention",
        summary="a sigmoid gate on the output of each head: a token can turn heads off, without an attention sink",
        paper="Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free",
        authors="Qiu et al.",
        year=2025,
        arxiv="2505.06708",
        kind="exact",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax attention matrices, and gates per token",
        use_case="deep networks; long sequences, where softmax attention needs a sink",
        supports=("causal", "arbitrary_mask", "attn_bias", "context", "cache", "weights", "equivariant"),
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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, positions=positions, **factory
        )
        if gate not in ("elementwise", "headwise"):
            raise ValueError(f"gate must be 'elementwise' or 'headwise', not {gate!r}")
        width = self.head_dim if gate == "elementwise" else 1
        self.gate = OutputGate(embed_dim, num_heads, width, bias=bias, **factory)

    def _merge_heads(self, heads: Float[Tensor, "B H N d"], x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        # (concat(heads) ⊙ σ(x W_G)) W_O
        return super()._merge_heads(self.gate(heads, x), x)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        self.gate.keep_heads(heads)
