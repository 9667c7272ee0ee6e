"""Gated linear attention: each token computes how much of each channel of the state is kept."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnlab.nn.attention import Card, check_positive_int
from attnlab.nn.projections import LowRank
from attnlab.nn.recurrent import RecurrentBase
from attnlab.nn.select import head_channels, select_features
from attnlab.ops.rowwise import at_least_float32
from attnlab.ops.scan import Recurrence


class GatedLinearAttention(RecurrentBase):
    """``S_t = diag(α_t) S_{t-1} + k_tᵀ v_t``, ``head_t = q_t S_t / √d``.

    The gate has one entry per channel of the key: ``α_t = sigmoid(x_t W_1 W_2 + b)^(1/τ)``, where W_1 has few columns.
    The output is ``(swish(X W_r) ⊙ norm(heads)) W_O``.

    Source: Yang et al. 2023, "Gated Linear Attention Transformers with Hardware-Efficient Training", sections 4.1 and
    4.4; the norm of each head is an RMS norm, as in the code of the authors.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        key_dim: d, the width of queries, keys and gates; half of ``embed_dim / num_heads`` by default, rounded up.
        decay_rank: the number of columns of W_1.
        decay_temperature: τ; the larger it is, the closer the gates are to 1.
        short_conv: the number of tokens of a convolution over queries, keys and values; 0 for none.
        output_norm: whether the output of each head is normalized.
        output_gate: the activation of the output gate: none, sigmoid or swish.
        causal: must be True; the recurrence has no other form.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections have a bias; W_2 always has one.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        TypeError: for a ``decay_rank`` that is not an integer.
        ValueError: for a ``decay_rank`` below 1, a ``decay_temperature`` that is not above 0, and what `RecurrentBase`
            refuses.
    """

    card = Card(
        title="Gated linear attention",
        summary="each token computes a decay for every channel of the state",
        paper="Gated Linear Attention Transformers with Hardware-Efficient Training",
        authors="Yang et al.",
        year=2023,
        arxiv="2312.06635",
        kind="another operator",
        heads="h",
        time="n·d²/h + n·d²",
        memory="n·d",
        representation="h lower triangular matrices of scores that gates lower; entries may be negative",
        use_case="long sequences where the text decides what is forgotten; decoding with constant memory",
        supports=("causal", "padding", "segments", "cache", "weights"),
        parent="retention",
        weights="signed",
        always_causal=True,
        constant_state=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 4,
        *,
        key_dim: int | None = None,
        decay_rank: int = 16,
        decay_temperature: float = 16.0,
        short_conv: int = 0,
        output_norm: bool = True,
        output_gate: Literal["none", "sigmoid", "swish"] = "swish",
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        if not decay_temperature > 0:
            raise ValueError(f"decay_temperature must be above 0, not {decay_temperature!r}")
        super().__init__(
            embed_dim,
            num_heads,
            key_dim=max(1, (embed_dim // num_heads + 1) // 2) if key_dim is None else key_dim,
            short_conv=short_conv,
            output_norm=output_norm,
            output_gate=output_gate,
            causal=causal,
            dropout=dropout,
            bias=bias,
            **factory,
        )
        self.decay_temperature = decay_temperature
        rank = check_positive_int("decay_rank", decay_rank)
        self.decay = LowRank(embed_dim, rank, num_heads * self.key_dim, bias=True, **factory)  # W_1; W_2 and b

    def _recurrence(
        self,
        x: Float[Tensor, "B N D"],
        Q: Float[Tensor, "B H N d"],
        K: Float[Tensor, "B H N d"],
        V: Float[Tensor, "B H N w"],
    ) -> Recurrence:
        gates = at_least_float32(self.decay(x)).unflatten(-1, (self.num_heads, -1))
        log_decay = F.logsigmoid(gates.transpose(1, 2)) / self.decay_temperature  # (B, H, N, d)
        return Recurrence(at_least_float32(Q) / math.sqrt(self.key_dim), K, V, log_decay=log_decay)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        select_features(self.decay.up, rows=head_channels(heads, self.key_dim))

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        return f"{super().extra_repr()}, decay_rank={self.decay.down.out_features}"
