"""Linformer attention: keys and values are projected along the length, from n tokens to k rows."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnlab.masks import BoundMask, PaddingMask
from attnlab.nn.attention import Card, check_positive_int
from attnlab.nn.multihead import MultiHeadBase
from attnlab.ops.arithmetic import Arithmetic, Cell
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.bias import Bias
from attnlab.ops.rowwise import at_least_float32, scaled_dot_product
from attnlab.ops.softmax import SoftmaxMap
from attnlab.utils.tracing import full_precision

SHARING = ("none", "headwise", "key-value")


class LinformerAttention(MultiHeadBase):
    """``head = softmax(Q (E K)ᵀ / √d) (F V)``, where E and F are learned matrices of k rows, one column per token.

    A sequence of n tokens uses the first n columns. Padding on either side has no effect: the j-th real token uses
    column j.

    E and F start as uniform values with the variance 1/(max_length + k), as in the authors' code, so that a projection
    of independent keys is no larger than a key, at any length. The N(0, 1/k) of section 4 belongs to a proof about
    fixed random projections, which also scales E down. Without this scale, the scores would grow as √(n/k).

    Source: Wang et al. 2020, "Linformer: Self-Attention with Linear Complexity", section 4. Initialization:
    ``MultiheadLinearAttention.reset_parameters`` in examples/linformer of fairseq.

    Args:
        embed_dim: D, the width of the tokens, in and out.
        num_heads: h, the number of heads; it must divide embed_dim.
        max_length: the number of columns of E and F; a longer sequence raises an error.
        rank: k, the number of projected keys and values.
        sharing: "headwise", one E and one F for all heads; "key-value", where also F = E; or "none", an E and an F per
            head. To share them between layers, assign those of one layer to another.
        causal: must be False, because every projected key mixes all tokens.
        dropout: the probability of dropping an attention weight of a projected key, in training only.
        bias: whether the projections of the tokens have a bias.
        device: the device of the parameters.
        dtype: the dtype of the parameters.

    Raises:
        ValueError: for another sharing, and what `MultiHeadBase` refuses.
    """

    card = Card(
        title="Linformer attention",
        summary="keys and values are projected along the length, from n to k: time linear in n, for a fixed length",
        paper="Linformer: Self-Attention with Linear Complexity",
        authors="Wang et al.",
        year=2020,
        arxiv="2006.04768",
        kind="approximation",
        heads="h",
        time="n·k·d + n·d²",
        memory="n·d",
        representation="h signed matrices of rank at most k",
        use_case="encoders of sequences up to a fixed length",
        supports=("padding", "context", "weights"),
        parent="multihead",
        weights="signed",
    )

    supports_packing = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 8,
        *,
        max_length: int = 4096,
        rank: int = 64,
        sharing: Literal["none", "headwise", "key-value"] = "headwise",
        causal: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(embed_dim, num_heads, causal=causal, dropout=dropout, bias=bias, device=device, dtype=dtype)
        self.max_length, self.rank = check_positive_int("max_length", max_length), check_positive_int("rank", rank)
        if sharing not in SHARING:
            raise ValueError(f"sharing must be one of {', '.join(SHARING)}, not {sharing!r}")
        self.sharing = sharing
        shape = (num_heads, rank, max_length) if sharing == "none" else (rank, max_length)
        self.E = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.F = None if sharing == "key-value" else nn.Parameter(torch.empty_like(self.E))
        self._reset_projections()

    def reset_parameters(self) -> None:
        """Initialize all parameters; E and F uniformly with the variance 1/(max_length + k)."""
        super().reset_parameters()
        self._reset_projections()

    def _reset_projections(self) -> None:
        bound = (3 / (self.max_length + self.rank)) ** 0.5  # that of `xavier_uniform_` with a gain of √½, for each head
        for projection in (self.E, self.F):
            if projection is not None:
                nn.init.uniform_(projection, -bound, bound)

    def _attention_map(
        self, Q: Float[Tensor, "B H N d"], K: Float[Tensor, "B H M d"], mask: BoundMask | None, bias: Bias | None = None
    ) -> ProjectedMap:
        M = K.shape[2]
        if self.max_length < M:
            raise ValueError(
                f"this {type(self).__name__} takes at most max_length ({self.max_length}) tokens, not {M}; "
                f"build it with max_length={M}"
            )
        E = _columns(self.E, M, mask)
        return ProjectedMap(Q, K, E, E if self.F is None else _columns(self.F, M, mask))

    def _select_heads(self, heads: list[int], groups: list[int]) -> None:
        super()._select_heads(heads, groups)
        if self.sharing == "none":
            assert self.F is not None
            self.E, self.F = nn.Parameter(self.E[heads]), nn.Parameter(self.F[heads])

    def extra_repr(self) -> str:
        """Return the options that a printed network shows."""
        return f"{super().extra_repr()}, max_length={self.max_length}, rank={self.rank}, sharing={self.sharing}"


class ProjectedMap(AttentionMap):
    """``softmax(Q (E K)ᵀ / √d) F``, never materialized.

    Args:
        Q: (B, H, N, d).
        K: (B, H, M, d).
        E: (B | 1, H | 1, k, M).
        F: of the shape of ``E``.
    """

    implied = True

    def __init__(self, Q: Tensor, K: Tensor, E: Tensor, F: Tensor) -> None:
        super().__init__((*Q.shape[:3], K.shape[2]), Q)
        self.Q, self.K, self.F = Q, _projected(E, K), F

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values; ``dropout`` drops weights of the projected keys."""
        return SoftmaxMap(self.Q, self.K).apply(_projected(self.F, values), dropout=dropout)

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        b, h, i, j = cell
        scores = scaled_dot_product(self.Q[b, h, i], self.K[b, h])
        column = self.F.expand(*self.shape[:2], -1, -1)[b, h, :, j]
        s = a.given("scores", scores, "q · k / √d for the query and each projected key, a row of E K")
        f = a.given("factors", column, "the factors of the token in the projected values: its column of F")
        top = a.compute("top", f"max({s})", "the largest score, subtracted against overflow")
        e = a.compute("exponentials", f"[math.exp(x - {top}) for x in {s}]", "the numerators of the softmax")
        total = a.compute("total", f"sum({e})", "its denominator")
        code = f"sum(x / {total} * y for x, y in zip({e}, {f}))"
        a.compute("weight", code, "the implied weight: Σ of the softmax over the projected keys times F")

    def _rows(self, rows: Tensor) -> Tensor:
        return SoftmaxMap(self.Q[:, :, rows], self.K).materialize() @ self.F.to(self.Q.dtype)


def _columns(projection: Tensor, M: int, mask: BoundMask | None) -> Tensor:
    """Return the columns of the tokens, (B | 1, H | 1, k, M), zero for padding."""
    projection = projection if projection.dim() == 3 else projection.unsqueeze(0)
    real = [] if mask is None else mask.real_keys(M)
    if not real:
        return _first(projection, M)
    assert mask is not None
    keep = torch.stack(real).all(0)  # (B | 1, M)
    if all(isinstance(rule, PaddingMask) and rule.side == "right" for rule in mask.conjuncts):
        columns = _first(projection, M)  # those of the real tokens, which are the first
    else:
        columns = projection[:, :, (keep.cumsum(-1) - 1).clamp(min=0)].movedim(2, 0)
    return columns.masked_fill(~keep[:, None, None], 0.0)


def _first(projection: Tensor, M: int) -> Tensor:
    """Return the first columns, (1, H | 1, k, M)."""
    if torch.compiler.is_compiling():  # a slice would exclude the length at which it contains all columns
        return projection.index_select(-1, torch.arange(M, device=projection.device)).unsqueeze(0)
    return projection[None, :, :, :M]


def _projected(projection: Tensor, x: Tensor) -> Tensor:
    """Return the projection (B | 1, H | 1, k, M) times ``x`` (B | 1, H | 1, M, w); the sums are at least float32."""
    dtype = x.dtype
    with full_precision(x.device):
        projection, x = at_least_float32(projection), at_least_float32(x)
        if projection.shape[1] > 1:
            return (projection @ x).to(dtype)
        wide = projection[:, 0] @ x.transpose(1, 2).flatten(2)  # one product for all heads
        return wide.unflatten(-1, (x.shape[1], x.shape[3])).transpose(1, 2).to(dtype)
