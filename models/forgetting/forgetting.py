"""Forgetting attention: the forget gate of a token lowers the scores of all earlier tokens."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card, make_linear
from attnlab.nn.cache import KVCache
from attnlab.nn.multihead import MultiHeadBase
from attnlab.nn.select import select_features
from attnlab.ops.decayed import DecayedMap
from attnlab.ops.rowwise import at_least_float32
from attnlab.positions import Positions


class ForgettingAttention(MultiHeadBase):
    """``softmax(Q Kᵀ / √d_k + D) V`` with ``D_ij = Σ_{j < l ≤ i} log f_l`` and the gate ``f = σ(x W_f + b_f)``.

    The gates of masked keys are left out of the sum. For a key ahead of its query (not causal, which the paper does not
    cover) the sum runs from the query to the key: ``Σ_{i ≤ l < j} log f_l``.

    Source: Lin et al. 2025, "Forgetting Transformer: Softmax Attention with a Forget Gate", section 3.1.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        forget_bias_init: the initial value of b_f. The default of 4 starts with open gates, f = 0.98, so that gradients
            reach distant tokens from the first step; the authors' code starts with 0, f = 1/2.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the additional positional encoding: none or rotary, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for positions alibi or t5, and what `MultiHeadBase` refuses.
    """

    card = Card(
        title="Forgetting attention",
        summary="one forget gate per token and head lowers the attention weights of all earlier tokens",
        paper="Forgetting Transformer: Softmax Attention with a Forget Gate",
        authors="Lin et al.",
        year=2025,
        arxiv="2503.02130",
        kind="exact",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax attention matrices with a learned decay",
        use_case="causal language models without other positional encodings",
        supports=("causal", "arbitrary_mask", "attn_bias", "cache", "weights"),
        parent="multihead",
    )

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        forget_bias_init: float = 4.0,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        positions: Literal["none", "rotary"] | str | Positions = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, positions=positions, **factory
        )
        if self.positions.name in ("alibi", "t5"):
            raise ValueError(
                f"{type(self).__name__} takes positions none or rotary, not {self.positions.name}; "
                "its gates already lower the scores with distance"
            )
        self.forget_bias_init = forget_bias_init
        self.forget = make_linear(embed_dim, num_heads, **factory)  # W_f, b_f
        nn.init.constant_(self.forget.bias, forget_bias_init)

    def reset_parameters(self) -> None:
        """Initialize the parameters again; the gates start open."""
        super().reset_parameters()
        nn.init.constant_(self.forget.bias, self.forget_bias_init)

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Tensor | None = None,  # not supported: gates lie between two positions of one sequence
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B N D"]:
        Q, K, V = self._project_qkv(x, None)
        Q, K, bias = self._apply_positions(Q, K, attn_bias, None, cache)
        gates, dropout = self._gates(x), self.dropout if self.training else 0.0
        if cache is not None:
            K, V, gates = cache.update(K, V, gates)
        return self._merge_heads(DecayedMap(Q, K, gates.squeeze(-1), mask, bias).apply(V, dropout=dropout), x)

    def _build_map(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Tensor | None = None,
    ) -> DecayedMap:
        Q, K, _ = self._project_qkv(x, None)
        Q, K, bias = self._apply_positions(Q, K, attn_bias, None)
        return DecayedMap(Q, K, self._gates(x).squeeze(-1), mask, bias)

    def _gates(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N 1"]:
        return F.logsigmoid(at_least_float32(self.forget(x))).mT.unsqueeze(-1)  # log f

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        select_features(self.forget, rows=heads)
