"""BigBird: each token attends to the blocks around it, to global blocks, and to a few random blocks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from attnlab.masks import Mask, block_local, global_tokens, random_blocks
from attnlab.nn.attention import Card, check_positive_int, renamed_options
from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import Positions

NUM_SEEDS = 2**31 - 1
MAX_RANDOM_BLOCKS = 1_000  # each draw is computed separately


class BigBirdAttention(MultiHeadBase):
    """``head_i = softmax(Q_i K_iᵀ / √d_k) V_i`` over the keys of local, global and random blocks.

    Source: Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", section 2 (internal global tokens).
    Each block draws among the earlier blocks, and both blocks of a pair attend to each other, as in the undirected
    graphs of the paper, so the pattern does not change when a sequence grows. The authors' code draws among all blocks.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        block_size: b, the number of tokens per block, counted from the first token.
        window_size: w, the number of blocks that a token attends to around its own, which is in the middle; odd.
        num_global: g, the number of global blocks at the start: they attend to all tokens, and all tokens to them.
        num_random: r, the number of earlier blocks that each block draws.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none, rotary, alibi or t5, optionally with settings, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        TypeError: if a number of blocks is not an integer.
        ValueError: if window_size is even, or a number of blocks is negative.
    """

    card = Card(
        title="BigBird attention",
        summary="local, global and random blocks: any two tokens are connected through a few layers",
        paper="Big Bird: Transformers for Longer Sequences",
        authors="Zaheer et al.",
        year=2020,
        arxiv="2007.14062",
        kind="exact",
        heads="h",
        time="n·b·(w + 2g + 2r)·d + n·d²",
        memory="n·d",
        representation="h block-sparse softmax attention matrices",
        use_case="long documents as a whole: classification, question answering",
        supports=("causal", "arbitrary_mask", "attn_bias", "cache", "weights"),
        parent="longformer",
    )

    seed: Tensor

    @renamed_options(block="block_size", window="window_size")
    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        block_size: int = 16,
        window_size: int = 3,
        num_global: int = 1,
        num_random: int = 3,
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
        self.block_size = check_positive_int("block_size", block_size)
        self.window_size = check_positive_int("window_size", window_size)
        if window_size % 2 == 0:
            raise ValueError(
                f"window_size must be odd, with the block of the token in the middle, not {window_size}; "
                f"try {window_size + 1}"
            )
        self.num_global = check_positive_int("num_global", num_global, 0)
        self.num_random = check_positive_int("num_random", num_random, 0)
        if num_random > MAX_RANDOM_BLOCKS:
            raise ValueError(f"num_random must be at most {MAX_RANDOM_BLOCKS:,}, not {num_random}")
        # A buffer, so that every layer has its own random blocks and a saved network keeps them.
        self.register_buffer("seed", torch.randint(NUM_SEEDS, (), device=device))

    def reset_parameters(self) -> None:
        """Initialize the projections and draw new random blocks."""
        super().reset_parameters()
        self.seed.random_(NUM_SEEDS)

    def attention_pattern(self, length: int) -> Mask:
        """The local, global and random blocks."""
        pattern = block_local(self.block_size, neighbors=self.window_size // 2)
        if self.num_global:
            pattern = pattern | global_tokens(self.num_global * self.block_size)
        if self.num_random:
            pattern = pattern | random_blocks(self.block_size, self.num_random, self.seed)
        return pattern

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)  # all heads share the random blocks
