"""Sparse attention in two steps: half of the heads look near, half look far in strides, and two layers reach all."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.masks import BoundMask, Mask, block_local, block_summary, per_head, sliding_window, strided
from attnlab.nn.attention import Card, check_positive_int, renamed_options
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.bias import Bias
from attnlab.ops.softmax import SoftmaxMap
from attnlab.positions import Positions


class StridedAttention(MultiHeadBase):
    """``head_i = softmax(Q_i K_iᵀ / √d_k) V_i`` over near keys in the first half of the heads, far ones in the second.

    Strided, a near head looks ``stride`` back, and a far one at every ``stride``-th token. Fixed, a near head looks
    into its own block of ``stride`` tokens, and a far one at the last ``summary`` tokens of every block.

    Source: Child et al. 2019, "Generating Long Sequences with Sparse Transformers", section 4.3 (strided and fixed) and
    5.1 (each pattern in heads of its own). The paper looks back only; without ``causal`` the same rules hold both ways.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads, at least 2; it must divide embed_dim.
        pattern: strided, for data with a period such as the rows of a picture; or fixed, for text.
        stride: l, near the root of the usual length, or the period.
        summary: c, in the fixed form, how many tokens at the end of a block speak for it.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, rotary, alibi or t5, with settings where wanted, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        ValueError: for a single head, for an unknown pattern, for more summaries than a block has tokens.
    """

    card = Card(
        title="Strided sparse attention",
        summary="half of the heads look near, half at every l-th token: two layers reach everything",
        paper="Generating Long Sequences with Sparse Transformers",
        authors="Child et al.",
        year=2019,
        arxiv="1904.10509",
        kind="exact",
        heads="h, half near and half far",
        time="n·(l + n/l)·d + n·d²",
        memory="n·d",
        representation="h softmax maps, of a band and of strides",
        use_case="long sequences with a period: pictures row by row, sound; with l near √n, n·√n in all",
        supports=("causal", "mask", "attn_bias", "cache", "weights"),
        parent="multihead",
    )

    @renamed_options(form="pattern")
    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        pattern: Literal["strided", "fixed"] = "strided",
        stride: int = 32,
        summary: int = 1,
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        positions: Literal["none", "rotary", "alibi", "t5"] | str | Positions = "none",
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
        if num_heads < 2:
            raise ValueError("num_heads must be at least 2: half of the heads look near, half look far")
        if pattern not in ("strided", "fixed"):
            raise ValueError(f"pattern must be 'strided' or 'fixed', not {pattern!r}")
        self.pattern, self.stride = pattern, check_positive_int("stride", stride)
        self.summary = check_positive_int("summary", summary)
        if summary > stride:
            raise ValueError(f"summary ({summary}) must be at most stride ({stride}): a block has no more tokens")
        self.near = [head < (num_heads + 1) // 2 for head in range(num_heads)]  # which heads look near

    def attention_pattern(self, length: int) -> Mask:
        """The rule of each head."""
        if self.pattern == "strided":
            near, far = sliding_window(self.stride + 1), strided(self.stride)
        else:
            near, far = block_local(self.stride), block_summary(self.stride, self.summary)
        return per_head([near if own else far for own in self.near])

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None
    ) -> SoftmaxMap:
        return SoftmaxMap(Q, K, mask, bias)  # the mask holds the pattern

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        self.near = [self.near[head] for head in heads]

    def extra_repr(self) -> str:
        """What a printed network shows of this layer."""
        return f"{super().extra_repr()}, pattern={self.pattern!r}, stride={self.stride}"
