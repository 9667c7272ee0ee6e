"""Forgetting attention: a gate at every token lowers the scores of all that came before it."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnlab.attention import Card, linear
from attnlab.cache import Cache
from attnlab.engines.bias import Bias
from attnlab.engines.softmax import SoftmaxCore
from attnlab.heads import HeadedAttention
from attnlab.masks import BoundMask
from attnlab.narrow import narrow
from attnlab.positions import Positions


class ForgettingAttention(HeadedAttention):
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
        supports=("causal", "mask", "bias", "cache", "weights"),
        parent="multihead",
    )

    packs = True

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
        self.forget = linear(embed_dim, num_heads, device=device, dtype=dtype)  # W_f, b_f

    def _forward(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        bias: Tensor | None = None,
        context: Tensor | None = None,  # not claimed: a gate lies between two places of one sequence
        cache: Cache | None = None,
    ) -> Float[Tensor, "B N D"]:
        Q, K, V = self._project(x, None)
        Q, K, added = self._place(Q, K, bias, None, cache)
        gates = self._gates(x)
        if cache is not None:
            K, V, gates = cache.append(K, V, gates)
        heads = self._decayed(Q, K, gates, mask, added).attend(V, dropout=self.dropout if self.training else 0.0)
        return self._join(heads, x)

    def _core(
        self,
        x: Float[Tensor, "B N D"],
        mask: BoundMask | None,
        bias: Tensor | None = None,
        context: Tensor | None = None,
    ) -> SoftmaxCore:
        Q, K, _ = self._project(x, None)
        Q, K, added = self._place(Q, K, bias, None)
        return self._decayed(Q, K, self._gates(x), mask, added)

    def _gates(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N 1"]:
        return F.logsigmoid(self.forget(x)).mT.unsqueeze(-1)  # log f

    def _decayed(
        self,
        Q: Float[Tensor, "B H N d"],
        K: Float[Tensor, "B H M d"],
        gates: Float[Tensor, "B H M 1"],
        mask: BoundMask | None,
        bias: Bias | None,
    ) -> SoftmaxCore:
        """The scores with their decay, as one number more in each query and key wherever that is the same."""
        if mask is None or not mask.looks_back_unbroken:
            decay = between(gates.squeeze(-1), Q.shape[2], None if mask is None else mask.tensor())
            return SoftmaxCore(Q, K, mask, decay if bias is None else bias + decay)
        # With C the running sum of log f, D_ij = C_i - C_j, and softmax does not see the C_i that its row shares:
        # (q, 1) · (k, -C √d) / √d = q · k / √d - C. The engine divides by √(d + 1).
        d = Q.shape[-1]
        last = gates.cumsum(2) * gates.new_tensor(-math.sqrt(d))
        Q = torch.cat([Q, Q.new_ones(*Q.shape[:-1], 1)], -1) * Q.new_tensor(math.sqrt((d + 1) / d))
        return SoftmaxCore(Q, torch.cat([K, last.to(K.dtype)], -1), mask, bias)

    def _narrow(self, heads: list[int], groups: list[int]) -> None:
        super()._narrow(heads, groups)
        narrow(self.forget, rows=heads)


def between(gates: Float[Tensor, "B H M"], queries: int, permitted: Tensor | None) -> Float[Tensor, "B H N M"]:
    """The sum of log gates from each query to each key, of those that the query may look at; queries at the end."""
    (B, H, M), N = gates.shape, queries
    own = gates.unsqueeze(2).expand(B, H, N, M)
    if permitted is not None:
        own = own.masked_fill(~permitted, 0.0)
    place = torch.arange(M, device=gates.device)
    here = place[M - N :, None]
    sums = own.cumsum(-1)
    upto = sums.gather(-1, here.expand(B, H, N, 1))
    back = upto - sums  # Σ_{j < l ≤ i}
    ahead = (sums - own) - (upto - own.gather(-1, here.expand(B, H, N, 1)))  # Σ_{i ≤ l < j}
    return torch.where(place <= here, back, ahead)
