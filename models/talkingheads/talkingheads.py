"""Talking-heads attention: the heads' scores are mixed before the softmax, and their weights after it."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card, UnsupportedError
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import RowwiseMap
from attnlab.ops.softmax import masked_softmax
from attnlab.positions import Positions


class TalkingHeadsAttention(MultiHeadBase):
    """``W = P_w · softmax(P_l · (Q Kᵀ / √d_k))``: the two P mix over the heads, (h, h) numbers each.

    Source: Shazeer et al. 2020, "Talking-Heads Attention", section 4.

    A mask that differs by head is the mask of the softmax in the middle: what one of these may look at reaches every
    head that listens to it.

    Args:
        embed_dim: D, the width of every token, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        causal: a token may look at itself and back, never ahead.
        dropout: the probability with which an attention weight is dropped, in training only.
        bias: whether the projections add a bias.
        positions: how place matters: none, or rotary, with settings where wanted, such as "rotary(base=500000)"
            (see attnlab.positions).
        device: where the parameters are made.
        dtype: of the parameters.

    Raises:
        ValueError: for positions alibi or t5, and what `MultiHeadBase` refuses.
    """

    card = Card(
        title="Talking-heads attention",
        summary="heads exchange scores before the softmax, and weights after it",
        paper="Talking-Heads Attention",
        authors="Shazeer et al.",
        year=2020,
        arxiv="2003.02436",
        kind="another operator",
        heads="h",
        time="n²·(d + h²) + n·d²",
        memory="n·d",
        representation="h maps, each a mixture of h softmax maps of mixed scores",
        use_case="many narrow heads",
        supports=("causal", "padding", "segments", "arbitrary_mask", "context", "cache", "weights", "equivariant"),
        parent="multihead",
    )

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
                "heads exchange their scores, and would exchange a bias of distance too"
            )
        # Each head starts by listening to itself alone: multi-head attention.
        self.scores = nn.Parameter(torch.eye(num_heads, device=device, dtype=dtype))  # P_l
        self.mixture = nn.Parameter(torch.eye(num_heads, device=device, dtype=dtype))  # P_w

    def reset_parameters(self) -> None:
        """Draw the projections anew; the heads are not mixed at the start."""
        super().reset_parameters()
        nn.init.eye_(self.scores)
        nn.init.eye_(self.mixture)

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None
    ) -> RowwiseMap:
        def normalize(scores: Float[Tensor, "B H n m"], permitted: Tensor | None) -> Float[Tensor, "B H n m"]:
            mixed = torch.einsum("hg,bgnm->bhnm", self.scores.to(scores.dtype), scores)
            maps = masked_softmax(mixed, permitted)
            return torch.einsum("hg,bgnm->bhnm", self.mixture.to(maps.dtype), maps)

        return RowwiseMap(Q, K, mask, bias, normalize)

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        gone = [head for head in range(self.num_heads) if head not in heads]
        heard = (self.scores[heads][:, gone] != 0) | (self.mixture[heads][:, gone] != 0)
        if heard.any():
            named = ", ".join(str(gone[i]) for i in heard.any(0).nonzero().flatten().tolist())
            raise UnsupportedError(
                f"the heads that stay listen to what goes ({named}): set their columns of scores and mixture to 0 "
                "first, or silence heads with attnlab.nn.pruning.edit_heads"
            )
        super()._select_heads(heads, groups)
        for name in ("scores", "mixture"):
            matrix: nn.Parameter = getattr(self, name)
            setattr(self, name, nn.Parameter(matrix[heads][:, heads], matrix.requires_grad))
