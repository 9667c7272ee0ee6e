"""Forgetting attention: a gate at every token lowers the scores of all that came before it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

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

    What a query may not look at does not make it forget. Where it may look ahead, the same sum runs from it to the key:
    ``Σ_{i ≤ l < j} log f_l``, which the paper, causal throughout, leaves open.

    Source: Lin et al. 2025, "Forgetting Transformer: Softmax Attention with a Forget Gate", section 3.1.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters besides: none or rotary, with settings where wanted, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        ValueError: for positions alibi or t5, and what `MultiHeadBase` refuses.
    """

    card = Card(
        title="Forgetting attention",
        summary="a forget gate a token and head: what lies behind closed gates is looked at less",
        paper="Forgetting Transformer: Softmax Attention with a Forget Gate",
        authors="Lin et al.",
        year=2025,
        arxiv="2503.02130",
        kind="exact",
        heads="h",
        time="n²·d + n·d²",
        memory="n·d",
        representation="h softmax maps under a learned decay",
        use_case="causal language models, without other positions",
        supports=("causal", "mask", "attn_bias", "cache", "weights"),
        parent="multihead",
    )

    supports_packing = True

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        positions: Literal["none", "rotary"] | str | Positions = "none",
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
        if self.positions.name in ("alibi", "t5"):
            raise ValueError(
                f"{type(self).__name__} takes positions none or rotary, not {self.positions.name}: "
                "its gates lower scores with distance already"
            )
        self.forget = make_linear(embed_dim, num_heads, device=device, dtype=dtype)  # W_f, b_f

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Tensor | None = None,  # not claimed: a gate lies between two places of one sequence
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B N D"]:
        Q, K, V = self._project_qkv(x, None)
        Q, K, added = self._apply_positions(Q, K, attn_bias, None, cache)
        gates = self._gates(x)
        if cache is not None:
            K, V, gates = cache.update(K, V, gates)
        heads = DecayedMap(Q, K, gates.squeeze(-1), mask, added).apply(
            V, dropout=self.dropout if self.training else 0.0
        )
        return self._merge_heads(heads, x)

    def _build_map(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        attn_bias: Tensor | None = None,
        context: Tensor | None = None,
    ) -> DecayedMap:
        Q, K, _ = self._project_qkv(x, None)
        Q, K, added = self._apply_positions(Q, K, attn_bias, None)
        return DecayedMap(Q, K, self._gates(x).squeeze(-1), mask, added)

    def _gates(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N 1"]:
        return F.logsigmoid(at_least_float32(self.forget(x))).mT.unsqueeze(-1)  # log f

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        select_features(self.forget, rows=heads)
