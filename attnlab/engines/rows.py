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

from attnlab.engines.bias import Bias, cut, of_rows, written
from attnlab.engines.core import Core
from attnlab.engines.paths import Path, may_split, tell
from attnlab.masks import BoundMask
from attnlab.masks.bound import TOGETHER, Places, in_order, slices

NUMBERS = 2**21
"""Weights that are written down at a time."""

Weigh = Callable[[Tensor, Tensor | None], Tensor]
"""Weights of scores: ((B, H, n, m), permitted or None) to (B, H, n, m), zero where it is not permitted."""


def attend_by_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BoundMask | None,
    bias: Bias | None,
    weigh: Weigh,
    *,
    score: Callable[[Tensor, Tensor], Tensor] | None = None,
    cost: int = 1,
    dropout: float = 0.0,
) -> Tensor:
    """``weigh(q kᵀ / √d + bias) v``, with the keys that a row can reach alone.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, w), or with 1 in place of B or H.
        mask: who may look at whom.
        bias: four axes, broadcastable to (B, H, N, M).
        weigh: makes weights of scores. A key that no row at hand may look at can be missing.
        score: makes scores (B, H, n, m) of q and k; the scaled dot product without it.
        cost: how many numbers a score takes while it is made.
        dropout: the probability of dropping a weight.

    Returns:
        (B, H, N, w).
    """
    score = scaled_dot_product if score is None else score
    (B, H, N, _), M = q.shape, k.shape[2]

    def part(q: Tensor, k: Tensor, v: Tensor, permitted: Tensor | None, bias: Tensor | None) -> Tensor:
        scores = score(q, k)
        weights = weigh(scores if bias is None else scores + bias.to(scores.dtype), permitted)
        return torch.dropout(weights, dropout, dropout > 0) @ v

    def whole() -> Tensor:
        return part(q, k, v, None if mask is None else mask.tensor(), None if bias is None else written(bias))

    if torch.compiler.is_compiling():  # one graph for every length
        return whole()
    size = max(1, NUMBERS // max(1, B * H * cost * (M if mask is None else mask.most)))
    if mask is not None and None in mask.mask.reach and mask.most < M:
        size = min(size, TOGETHER)  # some of them can reach more
    if not may_split(q) or size >= N:
        tell(lambda: Path("rows", f"no fused kernel makes these weights; all {N} rows at once"))
        return whole()
    tell(lambda: Path("rows", f"no fused kernel makes these weights; {size} of {N} rows at a time"))
    parts = []
    tiles: list[tuple[slice, Places]]
    tiles = [(rows, slice(0, M)) for rows in slices(N, size)] if mask is None else mask.tiles(size)
    for rows, keys in tiles:
        given = (
            q[:, :, rows],
            k[:, :, keys],
            v[:, :, keys],
            None if mask is None else mask.tile(rows, keys),
            None if bias is None else cut(bias, rows, keys),
        )
        # What a row needs for its gradient is computed again then: kept, it would be the map.
        parts.append(checkpoint(part, *given, use_reentrant=False) if torch.is_grad_enabled() else part(*given))
    return in_order(parts, [rows for rows, _ in tiles], 2)


class RowsCore(Core):
    """The core of a mechanism that is computed by `attend_by_rows`; takes what that takes."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        mask: BoundMask | None,
        bias: Bias | None,
        weigh: Weigh,
        *,
        score: Callable[[Tensor, Tensor], Tensor] | None = None,
        cost: int = 1,
    ) -> None:
        super().__init__((*q.shape[:3], k.shape[2]), q)
        self.q, self.k, self.mask, self.bias = q, k, mask, bias
        self._weigh, self._score, self._cost = weigh, score or scaled_dot_product, cost

    def attend(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """What each query gets."""
        how: dict[str, Any] = {"score": self._score, "cost": self._cost, "dropout": dropout}
        return attend_by_rows(self.q, self.k, values, self.mask, self.bias, self._weigh, **how)

    def _rows(self, rows: Tensor) -> Tensor:
        size = max(1, NUMBERS // max(1, self.shape[0] * self.shape[1] * self.shape[3] * self._cost))
        scores = torch.cat([self._score(self.q[:, :, part], self.k) for part in rows.split(size)], 2)
        if self.bias is not None:
            scores = scores + of_rows(self.bias, rows).to(scores.dtype)
        return self._weigh(scores, None if self.mask is None else self.mask.rows(rows))


def scaled_dot_product(q: Tensor, k: Tensor) -> Tensor:
    """``q kᵀ / √d``, (B, H, N, M)."""
    return q @ k.mT / math.sqrt(q.shape[-1])
