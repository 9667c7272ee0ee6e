"""DeltaNet: each token corrects the value that the state holds for the token's key."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnlab.nn.attention import Card, make_linear
from attnlab.nn.recurrent import RecurrentBase
from attnlab.nn.select import select_features
from attnlab.ops.rowwise import at_least_float32
from attnlab.ops.scan import Recurrence
from attnlab.ops.scan.functions import l2_norm


class DeltaNet(RecurrentBase):
    """``S_t = S_{t-1} + β_t k_t (v_t - S_{t-1}ᵀ k_t)ᵀ``, ``o_t = S_tᵀ q_t / √d``.

    ``q``, ``k`` and ``v`` are SiLU of the (convolved) projections; ``q`` and ``k`` are divided by their norms. Each
    token has, per head, a strength of the correction ``β = sigmoid(x W_β)``.

    Source: Schlag et al. 2021, "Linear Transformers Are Secretly Fast Weight Programmers", section 4; Yang et al. 2024,
    "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", section 3, for the features, the norms
    and the chunked form; Grazzi et al. 2024, "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues",
    for ``β`` up to 2.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        key_dim: d, the width of a query and a key; embed_dim / num_heads by default.
        value_dim: the width of a value; embed_dim / num_heads by default.
        allow_neg_eigval: whether β is doubled, up to 2: the transition I - β k kᵀ can then reverse the sign of a value.
        short_conv: the number of tokens of the convolution over queries, keys and values; 0 for none.
        output_norm: whether the output of each head is normalized.
        output_gate: the activation of an output gate: none, sigmoid or swish.
        causal: must be True; the recurrence has no other form.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="DeltaNet",
        summary="each token replaces the value that the state holds for its key, by the delta rule",
        paper="Linear Transformers Are Secretly Fast Weight Programmers",
        authors="Schlag et al.",
        year=2021,
        arxiv="2102.11174",
        kind="another operator",
        heads="h",
        time="n·d²/h + n·d²",
        memory="n·d",
        representation="h signed lower triangular matrices",
        use_case="sequences in which values are replaced; linear layers of hybrid networks",
        supports=("causal", "padding", "segments", "cache", "weights"),
        parent="linear",
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
        output_gate: Literal["none", "sigmoid", "swish"] = "none",
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
        self.strength = make_linear(embed_dim, num_heads, bias=False, **factory)  # W_β

    def _recurrence(
        self,
        x: Float[Tensor, "B N D"],
        Q: Float[Tensor, "B H N d"],
        K: Float[Tensor, "B H N d"],
        V: Float[Tensor, "B H N w"],
    ) -> Recurrence:
        Q, K, V = F.silu(Q), F.silu(K), F.silu(V)
        q = l2_norm(at_least_float32(Q)) / math.sqrt(self.key_dim)
        beta = at_least_float32(self.strength(x)).sigmoid().transpose(1, 2)
        beta = 2 * beta if self.allow_neg_eigval else beta
        return Recurrence(q, l2_norm(at_least_float32(K)), V, beta=beta)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        select_features(self.strength, rows=heads)
