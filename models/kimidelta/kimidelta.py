"""Kimi Delta Attention: a delta rule whose state decays at a rate of its own in each channel of the key."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnlab.nn.attention import Card, check_positive_int, make_linear
from attnlab.nn.decay import SelectiveDecay
from attnlab.nn.projections import LowRank
from attnlab.nn.recurrent import RecurrentBase
from attnlab.nn.select import head_channels, select_features
from attnlab.ops.rowwise import at_least_float32
from attnlab.ops.scan import Recurrence
from attnlab.ops.scan.functions import l2_norm


class KimiDeltaAttention(RecurrentBase):
    """``S_t = (I - β_t k_t k_tᵀ) Diag(α_t) S_{t-1} + β_t k_t v_tᵀ``, ``o_t = S_tᵀ q_t / √d``.

    ``q``, ``k`` and ``v`` are SiLU of the (convolved) projections; ``q`` and ``k`` have norm 1. The decay
    ``α = exp(-exp(A) softplus(x W_α↓ W_α↑ + dt))`` has one entry per channel of the key; ``A`` is a parameter per head,
    ``dt`` one per channel. ``β = sigmoid(x W_β)`` is one number per head. The output of a head is normalized and
    multiplied by ``sigmoid(x W_g↓ W_g↑)``.

    Source: Kimi Team 2025, "Kimi Linear: An Expressive, Efficient Attention Architecture", sections 3 and 4.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        rank: the width between W_α↓ and W_α↑, and between W_g↓ and W_g↑; embed_dim / num_heads by default.
        short_conv: the number of tokens of the convolution over queries, keys and values; 0 for none.
        output_norm: whether the output of each head is normalized.
        output_gate: the activation of the output gate: none, sigmoid or swish.
        causal: must be True; the recurrence has no other form.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for a rank below 1, and what `RecurrentBase` refuses.
    """

    card = Card(
        title="Kimi Delta Attention",
        summary="the delta rule with a decay per channel of the key: each channel forgets at its own rate",
        paper="Kimi Linear: An Expressive, Efficient Attention Architecture",
        authors="Kimi Team",
        year=2025,
        arxiv="2510.26692",
        kind="another operator",
        heads="h",
        time="n·d²/h + n·d²",
        memory="n·d",
        representation="h lower triangular matrices; entries may be negative",
        use_case="long sequences, in networks with a few layers of full attention; decoding with constant memory",
        supports=("causal", "padding", "segments", "cache", "weights"),
        parent="gateddeltanet",
        weights="signed",
        always_causal=True,
        constant_state=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        rank: int | None = None,
        short_conv: int = 4,
        output_norm: bool = True,
        output_gate: Literal["none", "sigmoid", "swish"] = "sigmoid",
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        width = max(1, embed_dim // num_heads) if rank is None else check_positive_int("rank", rank)
        super().__init__(
            embed_dim,
            num_heads,
            short_conv=short_conv,
            output_norm=output_norm,
            output_gate=output_gate,
            gate_rank=width,
            causal=causal,
            dropout=dropout,
            bias=bias,
            **factory,
        )
        self.step = LowRank(embed_dim, width, num_heads * self.key_dim, **factory)  # W_α
        self.decay = SelectiveDecay(num_heads, self.key_dim, smallest_rate=1.0, **factory)  # A, dt
        self.strength = make_linear(embed_dim, num_heads, bias=False, **factory)  # W_β

    def _recurrence(
        self,
        x: Float[Tensor, "B N D"],
        Q: Float[Tensor, "B H N d"],
        K: Float[Tensor, "B H N d"],
        V: Float[Tensor, "B H N w"],
    ) -> Recurrence:
        q, k = (l2_norm(at_least_float32(F.silu(part))) for part in (Q, K))
        log_decay = self.decay(self.step(x))[0].unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, d)
        beta = at_least_float32(self.strength(x)).sigmoid().transpose(1, 2)  # (B, H, N)
        return Recurrence(q / math.sqrt(self.key_dim), k, F.silu(V), log_decay=log_decay, beta=beta)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        select_features(self.step.up, rows=head_channels(heads, self.key_dim))
        select_features(self.strength, rows=heads)
        self.decay.select(heads)
