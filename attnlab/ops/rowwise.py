"""Attention weights that no fused kernel computes: a few rows of the matrix at a time, in bounded memory.

A mechanism defines how scores become weights (a cap on the scores, a sigmoid, another normalization, mixed heads).

Axes: B batch, H heads, N queries, n rows at a time, M keys, m keys that these rows may attend to, d head_dim.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.masks.bound import QUERY_CHUNK, Index, count, slices
from attnlab.ops.arithmetic import Arithmetic, Cell, Row, dot_product, masked, softmax
from attnlab.ops.attention_map import AttentionMap, ScoreOptions
from attnlab.ops.backends.eager import masked_softmax
from attnlab.ops.backends.tiles import Tiles, by_tiles
from attnlab.ops.bias import Bias, cut
from attnlab.ops.dispatch import Dispatch, record
from attnlab.utils.tracing import has_values

MAX_TILE_VALUES = 2**20
"""Values that are materialized at a time on a CPU."""

GPU_TILE_VALUES = 2**22
"""Values per tile on other devices: computing fewer takes no longer than starting the kernels."""

MIN_TILE_VALUES = 2**16
"""Values that take about as long to compute as setting up one tile."""

Normalize = Callable[[Tensor, Tensor | None], Tensor]
"""Scores (B, H, n, m) and the allowed keys, or None for all, to weights (B, H, n, m), zero for masked keys."""

Added = Callable[[Index, Index, Tensor | None], Tensor]
"""Rows, keys and the allowed ones among them to a term of their scores, (B, H, n, m)."""

ScoreLines = Callable[[Arithmetic, Tensor, Tensor, int], str]
"""Adds the lines of a score, for a query (d), a key (d) and a head; returns the name of the score."""

WeightLines = Callable[[Arithmetic, Row], None]
"""Adds the lines from the score of a key to its weight; the key is not masked."""

AddedLines = Callable[[Arithmetic, Cell], str]
"""Adds the lines of a further term of the score; returns its name."""


def scaled_dot_product(q: Tensor, k: Tensor) -> Tensor:
    """``q kᵀ / √d``, (B, H, N, M)."""
    return (q / math.sqrt(q.shape[-1])) @ k.mT


class RowwiseMap(AttentionMap):
    """``normalize(q kᵀ / √d + bias)``, computed for some rows at a time with the keys that they may attend to.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        mask: which keys each query attends to.
        bias: four axes, broadcastable to (B, H, N, M).
        normalize: computes weights from scores. A key that no row of a tile attends to may be missing.
        score_fn: computes scores (B, H, n, m) from q and k; the scaled dot product by default.
        added: computes a further term of the scores of a tile.
        score_cost: the temporary values per score.
        is_scaled: whether another ``score_fn`` than the default has the factor 1/√d.
        softcap: the scores become ``softcap · tanh(score / softcap)`` before the bias.
        score_lines: explains ``score_fn``; without it a score is shown as it is, unless it is the scaled dot product.
        weight_lines: explains ``normalize``; without it a weight is shown as it is, unless it is a softmax.
        added_lines: explains ``added``.
        excluded: why a key has a term ``added`` of -inf.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        mask: BoundMask | None,
        bias: Bias | None,
        normalize: Normalize,
        *,
        score_fn: Callable[[Tensor, Tensor], Tensor] = scaled_dot_product,
        added: Added | None = None,
        score_cost: int = 1,
        is_scaled: bool = False,
        softcap: float | None = None,
        score_lines: ScoreLines | None = None,
        weight_lines: WeightLines | None = None,
        added_lines: AddedLines | None = None,
        excluded: str = "this key is left out",
    ) -> None:
        super().__init__((*q.shape[:3], k.shape[2]), q)
        self.q, self.k, self.mask, self.bias = q, k, mask, bias
        self._normalize, self._score_fn, self._added, self._score_cost = normalize, score_fn, added, score_cost
        self._is_scaled = is_scaled or score_fn is scaled_dot_product
        self._factor, self._softcap, self._excluded = 1.0, softcap, excluded
        self._score_lines = dot_product if score_lines is None and score_fn is scaled_dot_product else score_lines
        self._weight_lines = softmax if weight_lines is None and normalize is masked_softmax else weight_lines
        self._added_lines = added_lines

    @property
    def changes(self) -> frozenset[str]:
        """A temperature and a cap; no scale where there is one; a sink where the weights are a softmax."""
        also = {"scale": self._is_scaled, "sink": self._normalize is masked_softmax}
        return frozenset({"temperature", "softcap", *(name for name, is_supported in also.items() if is_supported)})

    def _with_scores(self, options: ScoreOptions) -> RowwiseMap:
        changed = copy.copy(self)
        changed._factor = self._factor * options.factor(self.q.shape[-1])
        if options.softcap is not None:
            changed._softcap = options.softcap
        if options.sink is not None:
            sink = self._like.new_full((self.shape[1],), options.sink)
            changed._normalize, changed._weight_lines = partial(masked_softmax, sink=sink), partial(softmax, sink=sink)
        return changed

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        B, H, N, M = self.shape

        def part(rows: slice, keys: Index) -> Tensor:
            weights = self._weights(rows, keys)
            if dropout:  # a condition, because `torch.dropout` takes no symbolic Boolean
                weights = torch.dropout(weights, dropout, True)
            return weights @ values[:, :, keys]

        if torch.compiler.is_compiling():  # one graph for every length
            return part(slice(0, N), slice(0, M))
        tiles = row_tiles(self.q, self.mask, M, B * H * self._score_cost)
        size = count(tiles[0][0])
        record(lambda: Dispatch("rows", f"no fused kernel computes these weights; {size} of {N} rows at a time"))
        return by_tiles(part, tiles, self.q, random=dropout > 0)

    def _rows(self, rows: Tensor) -> Tensor:
        B, H, _, M = self.shape
        parts = rows.split(max(1, MAX_TILE_VALUES // max(1, B * H * M * self._score_cost)))
        return torch.cat([self._weights(part, slice(0, M)) for part in parts], 2)

    def _weights(self, rows: Index, keys: Index) -> Tensor:
        return self._normalize(*self._scores(rows, keys))

    def _scores(self, rows: Index, keys: Index) -> tuple[Tensor, Tensor | None]:
        """Return the scores, (B, H, n, m), and which of them the mask allows."""
        permitted = None if self.mask is None else self.mask.tile(rows, keys)
        scores = self._score_fn(self.q[:, :, rows], self.k[:, :, keys])
        if self._factor != 1.0:
            scores = scores * self._factor
        if self._softcap is not None:
            scores = self._softcap * torch.tanh(scores / self._softcap)
        if self.bias is not None:
            scores = scores + cut(self.bias, rows, keys).to(scores.dtype)
        if self._added is not None:
            scores = scores + self._added(rows, keys, permitted).to(scores.dtype)
        return scores, permitted

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        (b, h, i, j), (B, H, _, M) = cell, self.shape
        rows = slice(i, i + 1)
        scores, permitted = self._scores(rows, slice(0, M))
        score = self._explain_score(a, cell)
        allowed = scores > -torch.inf
        is_masked = permitted is not None and not permitted.expand(B, H, 1, M)[b, h, 0, j]
        if permitted is not None:
            allowed = allowed & permitted
        reason = "the mask does not allow this key" if is_masked else self._excluded
        row = Row(cell, score, scores[b, :, 0], allowed[b, :, 0], reason)
        weight = self._normalize(scores, permitted)[b, h, 0, j]
        if row.is_masked and not weight:  # where heads are mixed, another head may allow the key
            masked(a, row)
        elif self._weight_lines is not None:
            self._weight_lines(a, row)
        else:
            a.given("weight", weight, f"the attention weight, as the mechanism normalizes the {M} scores of the row")

    def _explain_score(self, a: Arithmetic, cell: Cell) -> str:
        """Add the lines of the score before the mask and return its name."""
        (b, h, i, j), (B, H, _, M) = cell, self.shape
        q, k = self.q[b, h, i], self.k[b, h, j]
        if self._score_lines is None:
            raw = self._score_fn(self.q[:, :, i : i + 1], self.k)[b, h, 0, j]
            score = a.given("scored", raw, "the score of the query and the key")
        else:
            score = self._score_lines(a, q, k, h)
        if self._factor != 1.0:
            score = a.compute("multiplied", f"{score} * {self._factor!r}", "times the factor that was chosen")
        if self._softcap is not None:
            cap = repr(self._softcap)
            score = a.compute("capped", f"{cap} * math.tanh({score} / {cap})", f"capped at ±{cap}")
        if self.bias is not None:
            bias = cut(self.bias, slice(i, i + 1), slice(0, M)).expand(B, H, 1, M)[b, h, 0, j]
            term = a.given("bias", bias, "the bias of this pair: from positions or attn_bias")
            score = a.compute("biased", f"{score} + {term}", "the score with the bias")
        if self._added_lines is not None:
            score = a.compute("score", f"{score} + {self._added_lines(a, cell)}", "the score")
        return score


def row_tiles(q: Tensor, mask: BoundMask | None, M: int, cost: int) -> Tiles:
    """Return all rows in tiles, each with the keys that it may attend to; one tile where more would save nothing.

    Depends on no value of ``q``, nor of a mask on another device than a CPU. In a trace there is one tile.

    Args:
        q: (B, H, N, d).
        mask: which keys each query attends to.
        M: the number of keys.
        cost: the number of temporary values per pair of a query and a key.
    """
    N, whole = q.shape[2], one_tile(q.shape[2], M)
    if not has_values(q):
        return whole
    least, most = (MIN_TILE_VALUES, MAX_TILE_VALUES) if q.is_cpu else (GPU_TILE_VALUES, GPU_TILE_VALUES)
    budget = most // max(1, cost)
    if mask is None:
        return [(rows, slice(0, M)) for rows in slices(N, max(1, budget // max(1, M)))] or whole
    back, ahead = mask.mask.band
    if back is not None and ahead is not None:
        # A tile of n rows covers n + window keys, so its area grows with n².
        window = (back + ahead) // mask.mask.stride + 1
        size = (math.isqrt(window**2 + 4 * budget) - window) // 2
        if q.is_cpu:
            size = min(size, max(QUERY_CHUNK, window // 4))
        tiles = mask.tiles(max(1, size))
        tiled_cost = sum(max(least, cost * count(r) * count(c)) for r, c in tiles)
        if budget >= N * M and 1.5 * tiled_cost > cost * N * M:
            return whole
        return tiles or whole
    keys = mask.mean_keys_per_query
    size = max(1, budget // max(1, keys))
    if keys < M:
        size = min(size, QUERY_CHUNK)
    return mask.tiles(size) if size < N else whole


def one_tile(N: int, M: int) -> Tiles:
    """Return one tile of all rows with all keys."""
    return [(slice(0, N), slice(0, M))]


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x``, in float32 if it is float16 or bfloat16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
