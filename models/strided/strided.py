"""Strided and fixed sparse attention: half of the heads attend locally, half over long distances in strides."""

from __future__ import annotations

from typing import Any, Literal

import torch

from attnlab.masks import Mask, block_local, block_summary, per_head, sliding_window, strided
from attnlab.nn.attention import Card, check_positive_int, renamed_options
from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import Positions


class StridedAttention(MultiHeadBase):
    """``head_i = softmax(Q_i K_iᵀ / √d_k) V_i`` over local keys in half of the heads, long-range keys in the rest.

    With the strided pattern, a local head attends to the last ``stride + 1`` keys, and a long-range head to every
    ``stride``-th key. With the fixed pattern, a local head attends to its own block of ``stride`` tokens, and a
    long-range head to the last ``summary`` tokens of every block.

    Source: Child et al. 2019, "Generating Long Sequences with Sparse Transformers", section 4.3 (both patterns) and 5.1
    (one pattern per head). The paper is causal; without ``causal`` the same patterns apply in both directions.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads, at least 2; it must divide embed_dim.
        pattern: strided, for data with a period such as the rows of an image; or fixed, for text.
        stride: l, the period of the data, or about the square root of the usual length.
        summary: c, the number of tokens at the end of a block that long-range heads attend to; for the fixed pattern.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for a single head, an unknown pattern, or a summary longer than a block.
    """

    card = Card(
        title="Strided sparse attention",
        summary="half of the heads attend locally, half to every l-th token: two layers connect all tokens",
        paper="Generating Long Sequences with Sparse Transformers",
        authors="Child et al.",
        year=2019,
        arxiv="1904.10509",
        kind="exact",
        heads="h, half local and half long-range",
        time="n·(l + n/l)·d + n·d²",
        memory="n·d",
        representation="h sparse softmax attention matrices: a band, or every l-th key",
        use_case="long sequences with a period, such as image rows or audio; with l near √n the time is n·√n·d",
        supports=("causal", "arbitrary_mask", "attn_bias", "cache", "weights"),
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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, positions=positions, **factory
        )
        if num_heads < 2:
            raise ValueError(
                "num_heads must be at least 2, since half of the heads are local and half are long-range; got 1"
            )
        if pattern not in ("strided", "fixed"):
            raise ValueError(f"pattern must be 'strided' or 'fixed', not {pattern!r}")
        self.pattern, self.stride = pattern, check_positive_int("stride", stride)
        self.summary = check_positive_int("summary", summary)
        if summary > stride:
            raise ValueError(f"summary ({summary}) must be at most stride ({stride}), the length of a block")
        self.is_local = [head < (num_heads + 1) // 2 for head in range(num_heads)]  # the heads with the local pattern

    def attention_pattern(self, length: int) -> Mask:
        """The local or the long-range pattern, per head."""
        if self.pattern == "strided":
            local, long_range = sliding_window(self.stride + 1), strided(self.stride)
        else:
            local, long_range = block_local(self.stride), block_summary(self.stride, self.summary)
        return per_head([local if is_local else long_range for is_local in self.is_local])

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        self.is_local = [self.is_local[head] for head in heads]

    def extra_repr(self) -> str:
        """The options that ``repr`` shows."""
        return f"{super().extra_repr()}, pattern={self.pattern!r}, stride={self.stride}"
