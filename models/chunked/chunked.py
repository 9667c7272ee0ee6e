"""Chunked attention: the sequence is split into chunks, and a token attends within its own chunk."""

from __future__ import annotations

from typing import Any, Literal

import torch

from attnlab.masks import Mask, block_local
from attnlab.nn.attention import Card, check_positive_int, renamed_options
from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import Positions


class ChunkedAttention(MultiHeadBase):
    """``head_i = softmax(Q_i K_iᵀ / √d_k) V_i`` over the keys of the query's own chunk.

    Source: Meta 2025, "The Llama 4 herd" (local layers, chunks of 8,192); the same block-diagonal pattern is the local
    part of Child et al. 2019, "Generating Long Sequences with Sparse Transformers".

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        chunk_size: c, the number of tokens per chunk; the first chunk starts at the first token.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.
    """

    card = Card(
        title="Chunked attention",
        summary="each token attends to its own chunk of c tokens only",
        paper="The Llama 4 herd: The beginning of a new era of natively multimodal AI innovation",
        authors="Meta",
        year=2025,
        arxiv=None,
        kind="exact",
        heads="h",
        time="n·c·d + n·d²",
        memory="n·d",
        representation="h block-diagonal softmax attention matrices",
        use_case="local layers between layers of full attention",
        supports=("causal", "arbitrary_mask", "attn_bias", "cache", "weights"),
        parent="slidingwindow",
    )

    supports_packing = False  # packing moves tokens, and with them the borders between chunks

    @renamed_options(chunk="chunk_size")
    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        chunk_size: int = 64,
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
        self.chunk_size = check_positive_int("chunk_size", chunk_size)

    @property
    def cache_window(self) -> int:
        """The size of a chunk, to whose first token the last one attends."""
        return self.chunk_size

    def attention_pattern(self, length: int) -> Mask:
        """Diagonal blocks of ``chunk_size`` tokens."""
        return block_local(self.chunk_size)
