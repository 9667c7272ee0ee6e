"""Retention: linear attention with rotary positions whose state decays at a constant rate, one per head."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.nn.attention import Card, check_positive_int
from attnlab.nn.recurrent import RecurrentBase
from attnlab.ops.rowwise import at_least_float32
from attnlab.ops.scan import Recurrence
from attnlab.positions import Positions


class Retention(RecurrentBase):
    """``S_n = γ S_{n-1} + k_nᵀ v_n``, ``head_n = q_n S_n / √d``, with ``q`` and ``k`` rotated by their positions.

    The decay of head h = 0, 1, ... is ``γ = 1 - 2^(-5 - h)``. The output is ``(swish(X W_G) ⊙ norm(heads)) W_O``.

    Source: Sun et al. 2023, "Retentive Network: A Successor to Transformer for Large Language Models", sections 2.1 and
    2.2. The group norm of each head is an RMS norm, as in the code of the authors. It makes the other two
    normalizations of section 2.2 unnecessary, because they only scale the output of a head for each query.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        value_dim: the width of a value; ``embed_dim / num_heads`` by default. The models of the paper have twice that.
        shortest_memory: 1 / (1 - γ) of head 0, about the number of tokens that it remembers; it doubles with each head.
        positions: none or rotary (see `attnlab.positions`); the paper interleaves the channels that are rotated.
        short_conv: the number of tokens of a convolution over queries, keys and values; 0 for none.
        output_norm: whether the output of each head is normalized.
        output_gate: the activation of the output gate: none, sigmoid or swish.
        causal: must be True; the recurrence has no other form.
        dropout: the probability of dropping a feature of the heads' output, in training only.
        bias: whether the projections have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for a ``shortest_memory`` below 2, and what `RecurrentBase` refuses.
    """

    card = Card(
        title="Retention",
        summary="a state that decays at a constant rate per head, and rotary positions",
        paper="Retentive Network: A Successor to Transformer for Large Language Models",
        authors="Sun et al.",
        year=2023,
        arxiv="2307.08621",
        kind="another operator",
        heads="h",
        time="n·d²/h + n·d²",
        memory="n·d",
        representation="h lower triangular matrices of scores that decay with the distance; entries may be negative",
        use_case="long sequences where recent tokens matter most; decoding with constant memory",
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
        value_dim: int | None = None,
        shortest_memory: int = 32,
        positions: Literal["none", "rotary"] | str | Positions = "rotary(layout=interleaved)",
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
        super().__init__(
            embed_dim,
            num_heads,
            value_dim=value_dim,
            short_conv=short_conv,
            output_norm=output_norm,
            output_gate=output_gate,
            positions=positions,
            causal=causal,
            dropout=dropout,
            bias=bias,
            **factory,
        )
        self.shortest_memory = check_positive_int("shortest_memory", shortest_memory, least=2)
        self.rates = tuple(range(num_heads))
        """The h of each head, from which its decay is computed."""

    def log_decay(self, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "H"]:
        """Return log γ of each head."""
        h = torch.arange(self.rates[-1] + 1, device=device, dtype=dtype)
        if len(h) > len(self.rates):  # some heads were removed
            h = torch.stack([h[rate] for rate in self.rates])
        return torch.log1p(-torch.exp2(-h) / self.shortest_memory)

    def _recurrence(
        self,
        x: Float[Tensor, "B N D"],
        Q: Float[Tensor, "B H N d"],
        K: Float[Tensor, "B H N d"],
        V: Float[Tensor, "B H N w"],
    ) -> Recurrence:
        q = at_least_float32(Q) / math.sqrt(self.key_dim)
        return Recurrence(q, K, V, log_decay=self.log_decay(q.device, q.dtype))

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        self.rates = tuple(self.rates[head] for head in heads)

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        return f"{super().extra_repr()}, shortest_memory={self.shortest_memory}"
