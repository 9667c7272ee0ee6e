"""Sliding-window attention: a token attends to its nearest neighbours."""

from __future__ import annotations

from typing import Any, Literal

import torch

from attnlab.masks import Mask, dilated, sliding_window
from attnlab.nn.attention import Card, check_positive_int, renamed_options
from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import Positions


class SlidingWindowAttention(MultiHeadBase):
    """``head_i = softmax(Q_i K_iᵀ / √d_k) V_i`` over the keys less than ``window_size`` steps of ``dilation`` away.

    Source: Beltagy et al. 2020, "Longformer: The Long-Document Transformer", section 3.1 (the dilation too); Jiang et
    al. 2023, "Mistral 7B", section 2, for the causal window.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        window_size: w, the number of keys on each side of a token, itself included; with ``causal`` a token attends
            to w keys in total.
        dilation: r, the distance between two of these keys; 1 for adjacent keys.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Sliding-window attention",
        summary="each token attends to its w nearest neighbours: time and memory grow linearly with the length",
        paper="Longformer: The Long-Document Transformer",
        authors="Beltagy et al.",
        year=2020,
        arxiv="2004.05150",
        kind="exact",
        heads="h",
        time="n·w·d + n·d²",
        memory="n·d",
        representation="h banded softmax attention matrices",
        use_case="long sequences with local dependencies; decoding with a KV cache of w tokens",
        supports=("causal", "arbitrary_mask", "attn_bias", "cache", "weights"),
        parent="strided",
    )

    @renamed_options(window="window_size")
    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        window_size: int = 64,
        dilation: int = 1,
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
        self.window_size = check_positive_int("window_size", window_size)
        self.dilation = check_positive_int("dilation", dilation)

    @property
    def cache_window(self) -> int:
        """The reach of the window: ``(w - 1) r + 1`` tokens."""
        return (self.window_size - 1) * self.dilation + 1

    def attention_pattern(self, length: int) -> Mask:
        """A band of ``window_size`` keys on each side."""
        return sliding_window(self.window_size) if self.dilation == 1 else dilated(self.window_size, self.dilation)
