"""Attention whose weights no fused kernel makes: a few rows of the map at a time, in bounded memory.

A mechanism says how weights come of scores (a cap on them, a sigmoid, another normalisation, heads that talk); the
rows, the keys that they can reach and the memory of the backward pass are seen to here.

Axes: B batch, H heads, N queries, n rows at a time, M keys, m keys that these can reach, d head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnlab.masks import BoundMask
from attnlab.masks.bound import QUERY_CHUNK, Index, count, in_order, slices
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.backends.tiles import collected
from attnlab.ops.bias import Bias, cut, of_rows
from attnlab.ops.dispatch import Dispatch, record
from attnlab.utils.tracing import can_inspect_values

MAX_TILE_VALUES = 2**20
"""Numbers that are materialized at a time."""

MIN_TILE_VALUES = 2**16
"""Numbers that take about as long to compute as a tile takes to set up."""

Normalize = Callable[[Tensor, Tensor | None], Tensor]
"""Weights of scores: ((B, H, n, m), permitted or None) to (B, H, n, m), zero where it is not permitted."""

Added = Callable[[Index, Index, Tensor | None], Tensor]
"""What is added to the scores of these rows and keys, (B, H, n, m), given which of them are permitted."""


def rowwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BoundMask | None,
    bias: Bias | None,
    normalize: Normalize,
    *,
    score_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    added: Added | None = None,
    score_cost: int = 1,
    dropout: float = 0.0,
) -> Tensor:
    """``normalize(q kᵀ / √d + bias) v``, for each tile of rows with the keys that it can reach.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, w), or with 1 in place of B or H.
        mask: which keys each query attends to.
        bias: four axes, broadcastable to (B, H, N, M).
        normalize: makes weights of scores. A key that no row of a tile attends to can be missing.
        score_fn: makes scores (B, H, n, m) of q and k; the scaled dot product without it.
        added: computes what else is added to the scores of a tile.
        score_cost: how many numbers a score takes while it is computed.
        dropout: the probability of dropping a weight.

    Returns:
        (B, H, N, w).
    """
    score_fn = scaled_dot_product if score_fn is None else score_fn
    (B, H, N, _), M = q.shape, k.shape[2]

    def part(rows: slice, keys: Index) -> Tensor:
        permitted = None if mask is None else mask.tile(rows, keys)
        scores = score_fn(q[:, :, rows], k[:, :, keys])
        if bias is not None:
            scores = scores + cut(bias, rows, keys).to(scores.dtype)
        if added is not None:
            scores = scores + added(rows, keys, permitted).to(scores.dtype)
        return torch.dropout(normalize(scores, permitted), dropout, dropout > 0) @ v[:, :, keys]

    if torch.compiler.is_compiling():  # one graph for every length
        return part(slice(0, N), slice(0, M))
    tiles = row_tiles(mask, N, M, B * H * score_cost) if can_inspect_values(q) else one_tile(N, M)
    size = count(tiles[0][0])
    record(lambda: Dispatch("rows", f"no fused kernel makes these weights; {size} of {N} rows at a time"))
    return by_tiles(part, tiles, random=dropout > 0)


def row_tiles(mask: BoundMask | None, N: int, M: int, each: int) -> list[tuple[slice, Index]]:
    """All rows in tiles, each with the keys that it can reach; one tile where more would save nothing.

    Args:
        mask: which keys each query attends to.
        N: queries.
        M: keys.
        each: how many numbers a pair of a query and a key takes.
    """
    whole = one_tile(N, M)
    budget = MAX_TILE_VALUES // max(1, each)
    if mask is None:
        return [(rows, slice(0, M)) for rows in slices(N, max(1, budget // max(1, M)))] or whole
    back, ahead = mask.mask.band
    if back is not None and ahead is not None:
        # A tile reaches its own rows besides the window, so its area grows with their square.
        window = (back + ahead) // mask.mask.stride + 1
        size = min(max(QUERY_CHUNK, window // 4), (math.isqrt(window**2 + 4 * budget) - window) // 2)
        tiles = mask.tiles(max(1, size))
        if (
            budget >= N * M
            and 1.5 * sum(max(MIN_TILE_VALUES, each * count(r) * count(c)) for r, c in tiles) > each * N * M
        ):
            return whole
        return tiles or whole
    most = mask.max_keys_per_query  # on average, where some rows can reach more keys than others
    size = max(1, budget // max(1, most))
    if most < M:
        size = min(size, QUERY_CHUNK)
    return mask.tiles(size) if size < N else whole


def one_tile(N: int, M: int) -> list[tuple[slice, Index]]:
    """All rows with all keys."""
    return [(slice(0, N), slice(0, M))]


def by_tiles(
    part: Callable[[slice, Index], Tensor], tiles: list[tuple[slice, Index]], *, random: bool = False
) -> Tensor:
    """``part`` of every tile, (B, H, n, w), as one tensor (B, H, N, w).

    With several tiles, what the backward pass needs of one is computed again then: all of it would be the whole matrix.

    Args:
        part: computes a tile.
        tiles: what `row_tiles` gives.
        random: whether ``part`` draws random numbers.
    """
    if len(tiles) == 1:
        return part(*tiles[0])

    def compute(rows: slice, keys: Index) -> Tensor:
        if torch.is_grad_enabled():
            out: Tensor = checkpoint(part, rows, keys, use_reentrant=False, preserve_rng_state=random)
            return out
        return part(rows, keys)

    return in_order(collected(compute, tiles), [rows for rows, _ in tiles], 2)


class RowwiseMap(AttentionMap):
    """The core of a mechanism that is computed by `rowwise_attention`; takes what that takes."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        mask: BoundMask | None,
        bias: Bias | None,
        normalize: Normalize,
        *,
        score_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        added: Added | None = None,
        score_cost: int = 1,
    ) -> None:
        super().__init__((*q.shape[:3], k.shape[2]), q)
        self.q, self.k, self.mask, self.bias = q, k, mask, bias
        self._normalize, self._score_fn, self._added, self._score_cost = (
            normalize,
            score_fn or scaled_dot_product,
            added,
            score_cost,
        )

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """What each query gets."""
        how: dict[str, Any] = {
            "score_fn": self._score_fn,
            "added": self._added,
            "score_cost": self._score_cost,
            "dropout": dropout,
        }
        return rowwise_attention(self.q, self.k, values, self.mask, self.bias, self._normalize, **how)

    def _rows(self, rows: Tensor) -> Tensor:
        size = max(1, MAX_TILE_VALUES // max(1, self.shape[0] * self.shape[1] * self.shape[3] * self._score_cost))
        return torch.cat([self._weights(part) for part in rows.split(size)], 2)

    def _weights(self, rows: Tensor) -> Tensor:
        permitted = None if self.mask is None else self.mask.rows(rows)
        scores = self._score_fn(self.q[:, :, rows], self.k)
        if self.bias is not None:
            scores = scores + of_rows(self.bias, rows).to(scores.dtype)
        if self._added is not None:
            scores = scores + self._added(rows, slice(0, self.shape[3]), permitted).to(scores.dtype)
        return self._normalize(scores, permitted)


def scaled_dot_product(q: Tensor, k: Tensor) -> Tensor:
    """``q kᵀ / √d``, (B, H, N, M)."""
    return (q / math.sqrt(q.shape[-1])) @ k.mT


def at_least_float32(x: Tensor) -> Tensor:
    """``x``, or ``x`` in float32 where it is float16 or bfloat16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
