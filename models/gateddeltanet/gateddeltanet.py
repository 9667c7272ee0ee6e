"""Gated DeltaNet: the state decays, and each token corrects the value that it holds for the token's key."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnlab.nn.attention import Card, make_linear
from attnlab.nn.decay import SelectiveDecay
from attnlab.nn.recurrent import RecurrentBase
from attnlab.nn.select import select_features
from attnlab.ops.rowwise import at_least_float32
from attnlab.ops.scan import Recurrence
from attnlab.ops.scan.functions import l2_norm


class GatedDeltaNet(RecurrentBase):
    """``S_t = α_t S_{t-1} + β_t k_t (v_t - (α_t S_{t-1})ᵀ k_t)ᵀ``, ``o_t = S_tᵀ q_t / √d``.

    ``q``, ``k`` and ``v`` are SiLU of the (convolved) projections; ``q`` and ``k`` are divided by their norms. Each
    token has, per head, a decay ``α = exp(-exp(A) softplus(x W_a + dt))`` and a strength of the correction
    ``β = sigmoid(x W_b)``. ``A`` and ``dt`` are one parameter per head.

    Source: Yang et al. 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule", sections 3.1 and 3.4; Grazzi et
    al. 2024, "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues", for ``β`` up to 2.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        key_dim: d, the width of a query and a key; embed_dim / num_heads by default.
        value_dim: the width of a value; embed_dim / num_heads by default.
        allow_neg_eigval: whether β is doubled, up to 2: the transition I - β k kᵀ can then reverse the sign of a value.
        short_conv: the number of tokens of the convolution over queries, keys and values; 0 for none.
        output_norm: whether the output of each head is normalized.
        output_gate: the activation of the output gate: none, sigmoid or swish.
        causal: must be True; the recurrence has no other form.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Gated DeltaNet",
        summary="each token lowers all values in the state, and corrects the one at its own key",
        paper="Gated Delta Networks: Improving Mamba2 with Delta Rule",
        authors="Yang et al.",
        year=2024,
        arxiv="2412.06464",
        kind="another operator",
        heads="h",
        time="n·d²/h + n·d²",
        memory="n·d",
        representation="h signed lower triangular matrices",
        use_case="long sequences in which values are replaced; linear layers of hybrid networks",
        supports=("causal", "padding", "segments", "cache", "weights"),
        parent="deltanet",
        weights="signed",
        always_causal=True,
        constant_state=True,
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        key_dim: int | None = None,
        value_dim: int | None = None,
        allow_neg_eigval: bool = False,
        short_conv: int = 4,
        output_norm: bool = True,
        output_gate: Literal["none", "sigmoid", "swish"] = "swish",
        causal: bool = True,
        dropout: float = 0.0,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim,
            num_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            short_conv=short_conv,
            output_norm=output_norm,
            output_gate=output_gate,
            causal=causal,
            dropout=dropout,
            bias=bias,
            **factory,
        )
        self.allow_neg_eigval = allow_neg_eigval
        self.step = make_linear(embed_dim, num_heads, bias=False, **factory)  # W_a
        self.strength = make_linear(embed_dim, num_heads, bias=False, **factory)  # W_b
        self.decay = SelectiveDecay(num_heads, **factory)  # A, dt

    def _recurrence(
        self,
        x: Float[Tensor, "B N D"],
        Q: Float[Tensor, "B H N d"],
        K: Float[Tensor, "B H N d"],
        V: Float[Tensor, "B H N w"],
    ) -> Recurrence:
        Q, K, V = F.silu(Q), F.silu(K), F.silu(V)
        q = l2_norm(at_least_float32(Q)) / math.sqrt(self.key_dim)
        log_decay = self.decay(self.step(x))[0].transpose(1, 2)
        beta = at_least_float32(self.strength(x)).sigmoid().transpose(1, 2)
        beta = 2 * beta if self.allow_neg_eigval else beta
        return Recurrence(q, l2_norm(at_least_float32(K)), V, log_decay=log_decay, beta=beta)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        for part in (self.step, self.strength):
            select_features(part, rows=heads)
        self.decay.select(heads)
