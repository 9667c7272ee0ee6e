"""Talking-heads attention: scores are mixed across heads before the softmax, attention weights after it."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask
from attnlab.nn.attention import Card, UnsupportedError
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.arithmetic import Arithmetic, Row
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import RowwiseMap
from attnlab.ops.softmax import masked_softmax
from attnlab.positions import Positions

LOWEST = -1e30
"""A finite logarithm of zero."""


class TalkingHeadsAttention(MultiHeadBase):
    """``W = P_w · softmax(P_l · (Q Kᵀ / √d_k))``: P_l and P_w, (h, h) each, mix across heads.

    Source: Shazeer et al. 2020, "Talking-Heads Attention", section 4.

    A mask with an axis of heads applies to the h softmaxes, between the two mixtures.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        causal: whether a token attends only to itself and to earlier tokens.
        dropout: the probability of dropping an attention weight, in training only.
        bias: whether the projections have a bias.
        positions: the positional encoding: none or rotary, optionally with settings, such as "rotary(base=500000)"
            (see attnlab.positions).
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for positions alibi or t5, and where `MultiHeadBase` raises it.
    """

    card = Card(
        title="Talking-heads attention",
        summary="heads mix their scores before the softmax and their attention weights after it",
        paper="Talking-Heads Attention",
        authors="Shazeer et al.",
        year=2020,
        arxiv="2003.02436",
        kind="another operator",
        heads="h",
        time="n²·(d + h²) + n·d²",
        memory="n·d",
        representation="h attention matrices, each a mixture of h softmax matrices of mixed scores",
        use_case="many narrow heads",
        supports=("causal", "arbitrary_mask", "context", "cache", "weights", "equivariant"),
        parent="multihead",
        weights="signed",
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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(
            embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, positions=positions, **factory
        )
        if self.positions.name in ("alibi", "t5"):
            raise ValueError(
                f"{type(self).__name__} supports positions none and rotary, not {self.positions.name}: "
                "mixing the scores would mix the position biases of the heads too"
            )
        # The identity: multi-head attention at the start.
        self.scores = nn.Parameter(torch.eye(num_heads, **factory))  # P_l
        self.mixture = nn.Parameter(torch.eye(num_heads, **factory))  # P_w

    def reset_parameters(self) -> None:
        """Initialize the projections at random and both mixtures to the identity."""
        super().reset_parameters()
        nn.init.eye_(self.scores)
        nn.init.eye_(self.mixture)

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None
    ) -> RowwiseMap:
        def normalize(scores: Float[Tensor, "B H n m"], permitted: Tensor | None) -> Float[Tensor, "B H n m"]:
            mixed = torch.einsum("hg,bgnm->bhnm", self.scores.to(scores.dtype), scores)
            weights = masked_softmax(mixed, permitted)
            return torch.einsum("hg,bgnm->bhnm", self.mixture.to(weights.dtype), weights)

        return RowwiseMap(Q, K, mask, bias, normalize, weight_lines=self._weight_lines)

    def _weight_lines(self, a: Arithmetic, row: Row) -> None:
        """Add the arithmetic from a score to its weight."""
        key, head = row.cell.key, row.cell.head
        allowed = row.allowed[:, key]
        every = row.scores[:, key].tolist()
        listed = ", ".join(row.score if h == head else repr(score) for h, score in enumerate(every))
        scores = a.compute("scores", f"[{listed}]", "the scores of the query and the key in every head")
        mixing = a.given("mixing", self.scores.flatten(), f"P_l, {len(every)} rows, which mixes the scores")
        rows = f"[{mixing}[i : i + {len(every)}] for i in range(0, {len(every) ** 2}, {len(every)})]"
        mixed = f"[sum(p * s for p, s in zip(row, {scores})) for row in {rows}]"
        mixed = a.compute("mixed", mixed, "the mixed score of the key in every head")
        keys = row.allowed.clone()
        keys[:, key] = False
        others = (self.scores.double() @ row.scores.double()).masked_fill(~keys, -torch.inf)
        rest = others.logsumexp(-1).clamp(min=LOWEST)
        rest_name = a.given("rest", rest, "the log-sum-exp of the mixed scores of the other allowed keys")
        top = a.compute("top", f"[max(m, r) for m, r in zip({mixed}, {rest_name})]", "the larger of the two")
        total = f"(math.exp(m - t) + math.exp(r - t)) for m, r, t in zip({mixed}, {rest_name}, {top})"
        softmax = a.compute("softmax", f"[math.exp(m - t) / {total}]", "the softmax of every head")
        if not allowed.all():
            keep = a.given("allowed", allowed, "1 in the heads whose mask allows the key")
            softmax = a.compute("kept", f"[x * y for x, y in zip({softmax}, {keep})]", "zero in the other heads")
        mixture = a.given("mixture", self.mixture[head], "the row of P_w for this head, which mixes the weights")
        code = f"sum(p * x for p, x in zip({mixture}, {softmax}))"
        a.compute("weight", code, "the attention weight: the mixture of the heads")

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        pruned = [head for head in range(self.num_heads) if head not in heads]
        used = ((self.scores[heads][:, pruned] != 0) | (self.mixture[heads][:, pruned] != 0)).any(0)
        if used.any():
            named = ", ".join(str(pruned[i]) for i in used.nonzero().flatten().tolist())
            raise UnsupportedError(
                f"the remaining heads use pruned heads ({named}): set their columns of scores and mixture to 0 first, "
                "or mask heads with attnlab.network.pruning.edit_heads"
            )
        super()._select_heads(heads, groups)
        for name in ("scores", "mixture"):
            matrix: nn.Parameter = getattr(self, name)
            setattr(self, name, nn.Parameter(matrix[heads][:, heads], matrix.requires_grad))
