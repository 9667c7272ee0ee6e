"""BigBird: a token looks at the blocks around it, at the first ones, and at a few drawn at random."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from attnlab.masks import Mask, block_local, global_tokens, random_blocks
from attnlab.nn.attention import Card, check_positive_int
from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import Positions

SEEDS = 2**31 - 1
MOST_RANDOM = 1_000
"""Each draw is computed by itself: a billion of them would never end."""


class BigBirdAttention(MultiHeadBase):
    """``head_i = softmax(Q_i K_iᵀ / √d_k) V_i`` over the keys of linked blocks: near, global and random ones.

    Source: Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", section 2 (internal global tokens).
    Each block draws among the blocks before it, and a link is looked along both ways, as in the paper's graphs: so what
    a token sees does not change when the sequence goes on. The authors' code draws for each block among all.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        block: b, how many tokens a block has, counted from the first token.
        window: w, how many blocks a token looks at around it, its own in the middle; odd.
        num_global: g, how many of the first blocks look at everything and are looked at by everything.
        num_random: r, how many times a block draws one that came before it.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, rotary, alibi or t5, with settings where wanted, such as
            "rotary(base=500000)" (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        TypeError: for a number of blocks that is not whole.
        ValueError: for a window that is even, and a number of blocks below 0.
    """

    card = Card(
        title="BigBird attention",
        summary="near blocks, the first ones and a few at random: any two tokens are a few looks apart",
        paper="Big Bird: Transformers for Longer Sequences",
        authors="Zaheer et al.",
        year=2020,
        arxiv="2007.14062",
        kind="exact",
        heads="h",
        time="n·b·(w + 2g + 2r)·d + n·d²",
        memory="n·d",
        representation="h softmax maps over a sparse graph of blocks",
        use_case="long documents as a whole: classification, question answering",
        supports=("causal", "padding", "segments", "arbitrary_mask", "attn_bias", "cache", "weights"),
        parent="longformer",
    )

    seed: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        block: int = 16,
        window: int = 3,
        num_global: int = 1,
        num_random: int = 3,
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
        self.block, self.window = check_positive_int("block", block), check_positive_int("window", window)
        if window % 2 == 0:
            raise ValueError(f"window must be odd, its own block in the middle, not {window}; try {window + 1}")
        for name, value in {"num_global": num_global, "num_random": num_random}.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, not {value!r}")
            if value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        if num_random > MOST_RANDOM:
            raise ValueError(f"num_random must be at most {MOST_RANDOM:,}, not {num_random}; each is drawn by itself")
        self.num_global, self.num_random = num_global, num_random
        # Drawn with the weights and kept with them: layers differ, and a saved network sees what it was trained on.
        self.register_buffer("seed", torch.randint(SEEDS, (), device=device))

    def reset_parameters(self) -> None:
        """Draw the projections and the random blocks anew."""
        super().reset_parameters()
        self.seed.random_(SEEDS)

    def attention_pattern(self, length: int) -> Mask:
        """The blocks around, the first ones, and those that were drawn."""
        rule = block_local(self.block, neighbors=self.window // 2)
        if self.num_global:
            rule = rule | global_tokens(self.num_global * self.block)
        return rule | random_blocks(self.block, self.num_random, self.seed) if self.num_random else rule

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)  # what was drawn is one for all heads
