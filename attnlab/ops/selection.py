"""Softmax attention over a few keys that are selected for each query, in tiles of queries: no matrix is kept.

Axes: B batch, H heads, H_k key heads, S heads with a selection of their own (1, H_k or H), N queries, n queries of a
tile, M keys, m keys of a tile, c selected keys, d head_dim, w width of the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.masks.bound import Index, count, positions
from attnlab.ops.arithmetic import Arithmetic, Cell
from attnlab.ops.attention_map import AttentionMap, ScoreOptions
from attnlab.ops.backends.eager import masked_softmax
from attnlab.ops.backends.sdpa import Kernel
from attnlab.ops.backends.tiles import by_tiles
from attnlab.ops.call import num_groups, repeat_kv
from attnlab.ops.dispatch import Dispatch, record
from attnlab.ops.rowwise import MAX_TILE_VALUES, RowwiseMap, row_tiles, scaled_dot_product

GATHER_RATIO = 64
"""Keys per selected key from which gathering the selected keys is faster than masking the others, on a CPU."""

DECODING_GATHER_RATIO = 4
"""The same for few queries, for which a kernel takes as long as reading the keys."""

FEW_QUERIES = 4

TEMPORARY_VALUES = 4
"""Temporary values per pair of a query and a key while the keys are selected."""

Select = Callable[[Index, Index, Tensor | None], Tensor]
"""Queries, keys and the allowed pairs among them (None: all) to the selected pairs, Boolean (B, S, n, m)."""


def top_k(scores: Tensor, k: int, permitted: Tensor | None = None) -> Tensor:
    """Return which keys have the k largest scores of each row: Boolean (B, S, n, m), at most k per row.

    Of equal scores at the border the earlier keys are selected, so that the result does not depend on the algorithm. A
    masked key is never selected.

    Args:
        scores: (B, S, n, m).
        k: the number of keys to select, at least 1.
        permitted: the allowed keys, Boolean, broadcastable with the scores.
    """
    if permitted is not None:
        scores = scores.masked_fill(~permitted, -torch.inf)
    if torch.compiler.is_compiling():  # the traced number of keys is not compared with k
        largest = F.pad(scores, (0, k), value=-torch.inf).topk(k).values
    else:
        largest = scores.topk(min(k, scores.shape[-1])).values
    border = largest[..., -1:]
    above, equal = scores > border, (scores == border) & (scores > -torch.inf)
    places = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= places))


class SelectedMap(AttentionMap):
    """``softmax(q kᵀ / √d)`` over the selected keys of each query.

    Args:
        q: (B, H, N, d).
        k: (B, H_k, M, d); H / H_k query heads that follow each other share a key head.
        mask: which keys each query may attend to.
        select: selects among the allowed keys.
        limit: the largest number of keys that ``select`` selects for a query; with so few keys it is not called, and
            all allowed keys are attended to.
    """

    def __init__(self, q: Tensor, k: Tensor, mask: BoundMask | None, select: Select, limit: int) -> None:
        super().__init__((*q.shape[:3], k.shape[2]), q)
        self.q, self.k, self.mask = q, k, mask
        self._select, self._limit, self._groups = select, limit, num_groups(q, k)

    @property
    def changes(self) -> frozenset[str]:
        """All options; the selection stays the same."""
        return self._by_rows().changes

    def _with_scores(self, options: ScoreOptions) -> AttentionMap:
        return self._by_rows()._with_scores(options)

    def _by_rows(self) -> RowwiseMap:
        def selected(rows: Index, keys: Index, permitted: Tensor | None) -> Tensor:
            chosen = self._of_heads(self.selected(rows, keys))
            scores = self.q.new_zeros(1, 1, count(rows), count(keys))
            return scores if chosen is None else scores.masked_fill(~chosen, -torch.inf)

        return RowwiseMap(
            self.q,
            repeat_kv(self.k, self._groups),
            self.mask,
            None,
            masked_softmax,
            added=selected,
            score_cost=TEMPORARY_VALUES,
            excluded=f"this key is not among the (at most {self._limit}) keys that are selected for the query",
        )

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        self._by_rows()._explain(a, cell)

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        B, _, N, M = self.shape
        values = values.expand(B, values.shape[1] if values.shape[1] > 1 else self.k.shape[1], -1, -1)
        kernel = Kernel(1 / math.sqrt(self.q.shape[-1]), dropout=dropout)
        groups = num_groups(self.q, values)
        gathers = not torch.compiler.is_compiling() and groups == self._groups
        gathers = gathers and self._limit * (DECODING_GATHER_RATIO if N <= FEW_QUERIES else GATHER_RATIO) <= M

        every_k = self.k
        if gathers and N > FEW_QUERIES:  # copied once, not in every tile
            every_k, values = every_k.contiguous(), values.contiguous()

        def part(rows: slice, keys: Index) -> Tensor:
            q, selected = self.q[:, :, rows], self.selected(rows, keys)
            if gathers and selected is not None and selected.shape[1] in (1, every_k.shape[1]):
                index, exists = indices(selected, min(self._limit, selected.shape[-1]))
                return gathered(q, every_k, values, positions(keys, 0, q.device)[index], exists, kernel)
            k, v = repeat_kv(every_k[:, :, keys], self._groups), repeat_kv(values[:, :, keys], groups)
            return kernel(q, k, v, self._of_heads(selected))

        if torch.compiler.is_compiling():  # one graph for every length
            return part(slice(0, N), slice(0, M))
        cost = B * TEMPORARY_VALUES
        tiles = row_tiles(self.q, self.mask, M, cost)
        size, how = count(tiles[0][0]), "gathered" if gathers else "as a mask"
        record(
            lambda: Dispatch("selected", f"{self._limit} of {M} keys per query, {how}; {size} of {N} rows at a time")
        )
        return by_tiles(part, tiles, self.q, random=dropout > 0)

    def selected(self, rows: Index, keys: Index) -> Tensor | None:
        """Return which pairs are attended to, Boolean, broadcastable to (B, H, n, m); None for all."""
        permitted = None if self.mask is None else self.mask.tile(rows, keys)
        if not torch.compiler.is_compiling() and count(keys) <= self._limit:
            return permitted
        return self._select(rows, keys, permitted)

    def _rows(self, rows: Tensor) -> Tensor:
        B, H, _, M = self.shape
        k, every = repeat_kv(self.k, self._groups), slice(0, M)
        parts = rows.split(max(1, MAX_TILE_VALUES // max(1, B * H * M)))
        weights = [
            masked_softmax(scaled_dot_product(self.q[:, :, part], k), self._of_heads(self.selected(part, every)))
            for part in parts
        ]
        return torch.cat(weights, 2)

    def _of_heads(self, selected: Tensor | None) -> Tensor | None:
        """Repeat a selection per key head for its query heads."""
        if selected is None or selected.shape[1] in (1, self.shape[1]):
            return selected
        return repeat_kv(selected, self._groups)


def gathered(q: Tensor, k: Tensor, v: Tensor, index: Tensor, exists: Tensor, kernel: Kernel) -> Tensor:
    """Return the attention to the selected keys alone, (B, H, n, w): each query is a batch item with its own keys.

    Args:
        q: (B, H, n, d).
        k: (B, H_k, M, d).
        v: (B, H_k, M, w).
        index: the selected keys, (B, S, n, c), with S = 1 or H_k.
        exists: which entries of ``index`` are keys, Boolean, of the same shape.
        kernel: computes the attention.
    """
    (B, H, n, _), H_k, c = q.shape, k.shape[1], index.shape[-1]
    index, exists = (t.expand(B, H_k, n, c) for t in (index, exists))
    items = B * H_k * n
    k, v = (_take(t, index).view(items, 1, c, t.shape[-1]) for t in (k, v))
    q = q.unflatten(1, (H_k, -1)).transpose(2, 3).flatten(0, 2).unsqueeze(1)  # (B · H_k · n, 1, H / H_k, d)
    out = kernel(q, k, v, exists.reshape(items, 1, 1, c))
    return out.view(B, H_k, n, H // H_k, v.shape[-1]).transpose(2, 3).flatten(1, 2)


def _take(t: Tensor, index: Tensor) -> Tensor:
    """Return the vectors of ``t`` (B, H, M, d) at ``index`` (B, H, n, c), with all axes but the last joined or not."""
    B, H, M = t.shape[:3]
    item, head = (torch.arange(size, device=t.device) for size in (B, H))
    if index.shape[2] <= FEW_QUERIES:  # reads these vectors only, wherever they lie
        return t[item[:, None, None, None], head[:, None, None], index]
    first = M * (H * item[:, None] + head)
    return t.flatten(0, 2).index_select(0, (index + first[:, :, None, None]).flatten())


def indices(selected: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Return the selected keys of each row in ascending order, and which of these exist, both (B, S, n, limit).

    Args:
        selected: Boolean (B, S, n, m), at most ``limit`` per row.
        limit: the size of the result; missing keys are 0.
    """
    place = torch.where(selected, selected.cumsum(-1) - 1, limit)  # keys that are not selected share the last place
    key = torch.arange(selected.shape[-1], device=selected.device).expand_as(place)
    index = place.new_zeros(*place.shape[:-1], limit + 1).scatter(-1, place, key)[..., :limit]
    return index, torch.arange(limit, device=selected.device) < selected.sum(-1, keepdim=True)
