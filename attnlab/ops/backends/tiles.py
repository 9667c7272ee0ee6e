"""Softmax attention in tiles of queries, each with the keys that they can reach. Every tile is one kernel call.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnlab.masks import BoundMask
from attnlab.masks.bound import Index, count, in_order, slices
from attnlab.ops.backends.sdpa import CAUSAL_CHUNK_LENGTHS, Kernel, additive, unpad
from attnlab.ops.bias import Bias, RelativeBias, cut
from attnlab.ops.call import AttentionCall
from attnlab.ops.dispatch import Dispatch

MIN_TILE_KEYS = 128
"""Keys below which one kernel call is faster than several."""

TILE_QUERIES = 64
"""Queries per tile; more of them reach more keys that are masked for most."""

KERNEL_CALL_WEIGHTS = 2**12
"""Weights that take as long to compute as one more kernel call."""

MIN_SAVING = 1.5
"""The computed weights must be fewer by this factor for tiles to be used."""

MAX_MATRIX_VALUES = 2**22
"""Values of a mask or a bias that are materialized at once; a larger matrix is made for some rows at a time."""

MATRIX_TILE_VALUES = 2**20
"""Values per tile of a matrix that is too large to be materialized."""

MAX_DROPOUT_WEIGHTS = 2**22
"""Weights per item that are kept for the backward pass of a dropout; more are computed again, in tiles."""

Tiles = list[tuple[slice, Index]]
"""Some queries, and the keys that they attend to."""


class Tiled:
    """A mask under which a few queries reach few keys: a window, blocks, strides."""

    def applies(self, call: AttentionCall) -> tuple[Tiles, bool] | None:
        """Return the tiles, and whether they are those of one residue of the stride."""
        mask = call.mask
        if mask is None or not call.can_inspect or call.k.shape[2] < MIN_TILE_KEYS or not call.q.shape[0]:
            return None
        folds = call.bias is None and mask.can_fold
        tiles = fitting_tiles(mask, one_residue=folds)
        return (tiles, folds) if tiles else None

    def run(self, call: AttentionCall, plan: tuple[Tiles, bool]) -> Tensor:
        """Compute the tiles."""
        (tiles, folds), width, call = plan, call.v.shape[-1], call.expand()
        q, k, v, mask = call.q, call.k, call.v, call.mask
        assert mask is not None
        kernel = Kernel(call.score_scale, call.sink, call.dropout)
        if folds:
            return unpad(folded(q, k, v, mask, kernel, tiles), width)
        return unpad(tiled(q, k, v, mask, call.bias, kernel, tiles), width)

    def explain(self, call: AttentionCall, plan: tuple[Tiles, bool]) -> Dispatch:
        """Return the name, and why."""
        mask, (tiles, _) = call.mask, plan
        assert mask is not None
        back, ahead = mask.mask.band
        if back is not None and ahead is not None:
            return Dispatch("window", f"{mask.mask} reaches {back} back and {ahead} ahead of {mask.keys} keys")
        reached = sum(count(rows) * count(keys) for rows, keys in tiles) / sum(count(rows) for rows, _ in tiles)
        return Dispatch("tiles", f"{mask.mask} lets a query reach {reached:.0f} of {mask.keys} keys on average")


class CausalChunks:
    """Causal attention of medium length in four chunks of queries, without the keys behind each chunk."""

    def applies(self, call: AttentionCall) -> bool | None:
        """Return True, or None."""
        mask, (shortest, longest) = call.mask, CAUSAL_CHUNK_LENGTHS
        if mask is None or call.bias is not None or mask.first or not call.can_inspect:
            return None  # a traced length is not compared: it stays free
        return True if mask.is_causal and shortest <= call.q.shape[2] <= longest and call.q.shape[0] else None

    def run(self, call: AttentionCall, plan: bool) -> Tensor:
        """Compute the chunks."""
        width, call = call.v.shape[-1], call.expand()
        kernel = Kernel(call.score_scale, call.sink, call.dropout)
        return unpad(causal_chunks(call.q, call.k, call.v, kernel), width)

    def explain(self, call: AttentionCall, plan: bool) -> Dispatch:
        """Return the name, and why."""
        return Dispatch("triangle", f"causal, {call.q.shape[2]} long: four chunks leave out most masked keys")


class Rows:
    """Some rows at a time, for a matrix that is large and not materialized yet, or for much dropout."""

    def applies(self, call: AttentionCall) -> Tiles | None:
        """Return the tiles."""
        if (call.mask is None and call.bias is None and not call.dropout) or not call.can_inspect:
            return None
        mask, bias, (H, N), M = call.mask, call.bias, call.q.shape[1:3], call.k.shape[2]
        if mask is not None and mask.allows_all:
            mask = None
        batch = heads = 1
        if bias is not None:
            batch, heads = bias.batch_and_heads if isinstance(bias, RelativeBias) else bias.shape[:2]
            exists = mask is None and isinstance(bias, Tensor)
        else:
            exists = mask is None or mask.is_causal or not mask.mask.by_position
        if mask is not None:
            batch, heads = max(batch, mask.mask.batch_size), max(heads, mask.mask.num_heads)
        large = not exists and batch * heads * N * M > MAX_MATRIX_VALUES
        if call.dropout and H * N * M > MAX_DROPOUT_WEIGHTS:
            (batch, heads), large = call.q.shape[:2], True
        if not large:
            return None
        size = max(1, MATRIX_TILE_VALUES // (batch * heads * M))
        return [(rows, slice(0, M)) for rows in slices(N, size)] if mask is None else mask.tiles(size)

    def run(self, call: AttentionCall, plan: Tiles) -> Tensor:
        """Compute the tiles; the backward pass computes their matrices again."""
        width, call = call.v.shape[-1], call.expand()
        kernel = Kernel(call.score_scale, call.sink, call.dropout)
        return unpad(tiled(call.q, call.k, call.v, call.mask, call.bias, kernel, plan, recompute=True), width)

    def explain(self, call: AttentionCall, plan: Tiles) -> Dispatch:
        """Return the name, and why."""
        size = count(plan[0][0])
        return Dispatch("rows", f"{size} of {call.q.shape[2]} rows at a time, because the whole matrix is large")


def tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BoundMask | None,
    bias: Bias | None,
    kernel: Kernel,
    tiles: Tiles,
    *,
    recompute: bool = False,
) -> Tensor:
    """Rows by tiles, each with the keys that it can reach: those of a window lie side by side and are read there.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d).
        mask: who may look at whom.
        bias: four axes, broadcastable to (B, H, N, M).
        kernel: computes a part.
        tiles: what `fitting_tiles` gives.
        recompute: whether the backward pass makes each tile's matrix again, in place of keeping all of them.

    Source: Beltagy et al. 2020, "Longformer", section 3.1, and Zaheer et al. 2020, "Big Bird", for the patterns.
    """

    def part(rows: slice, keys: Index) -> Tensor:
        seen = [t[:, :, keys] if isinstance(keys, slice) else t.index_select(2, keys) for t in (k, v)]
        given = (q[:, :, rows], seen[0], seen[1], mask, bias, kernel, rows, keys)
        if recompute and torch.is_grad_enabled():
            out: Tensor = checkpoint(compute_part, *given, use_reentrant=False, preserve_rng_state=kernel.dropout > 0)
            return out
        return compute_part(*given)

    parts = collected(part, tiles) if recompute else [part(*tile) for tile in tiles]
    return in_order([part.transpose(1, 2) for part in parts], [rows for rows, _ in tiles], 1).transpose(1, 2)


def collected(compute: Callable[[slice, Index], Tensor], tiles: Tiles) -> list[Tensor]:
    """``compute`` of every tile, (B, H, n, w).

    The results get their memory before the tiles do theirs. Behind the large temporary tensors of a tile they would
    keep an allocator from using the place of these again, and the process would grow by the whole matrix after all.
    """
    first = compute(*tiles[0])
    B, H, _, width = first.shape
    room = [first.new_empty(B, count(rows), H, width).transpose(1, 2) for rows, _ in tiles[1:]]
    return [first, *(out.copy_(compute(*tile)) for out, tile in zip(room, tiles[1:], strict=True))]


def folded(q: Tensor, k: Tensor, v: Tensor, mask: BoundMask, kernel: Kernel, tiles: Tiles) -> Tensor:
    """`tiled` for a mask that `BoundMask.folds`: rows a step apart are an item of their own, all in one call.

    Takes what `tiled` takes, but a bias.
    """
    B, N, step = q.shape[0], q.shape[2], mask.mask.stride
    q, k, v = (F.pad(t, (0, 0, 0, -N % step)).unflatten(2, (-1, step)) for t in (q, k, v))
    q, k, v = (t.permute(0, 3, 1, 2, 4).flatten(0, 1) for t in (q, k, v))

    def part(q: Tensor, k: Tensor, v: Tensor, rows: slice, keys: slice) -> Tensor:
        permitted = mask.folded_tile(rows, keys)
        if permitted.shape[:2] != (1, 1):
            permitted = permitted.expand(B, step, *permitted.shape[2:])
        return kernel(q, k, v, permitted.flatten(0, 1))

    # The weights of a dropout, and a mask of its own for every residue, have N² / step entries: they are made again.
    again = torch.is_grad_enabled() and (kernel.dropout > 0 or not mask.mask.is_relative or N % step > 0)
    parts = []
    for rows, keys in tiles:
        assert isinstance(keys, slice)
        own, seen = (slice(at.start // step, at.start // step + count(at)) for at in (rows, keys))
        given = (q[:, :, own], k[:, :, seen], v[:, :, seen], rows, keys)
        if again:
            parts.append(checkpoint(part, *given, use_reentrant=False, preserve_rng_state=kernel.dropout > 0))
        else:
            parts.append(part(*given))
    return torch.cat(parts, 2).unflatten(0, (B, step)).permute(0, 2, 3, 1, 4).flatten(2, 3)[:, :, :N]


def fitting_tiles(mask: BoundMask, *, one_residue: bool) -> Tiles | None:
    """The tiles of a mask under which a query can reach few keys alone; None where they would not save enough.

    Args:
        mask: who may look at whom.
        one_residue: whether those of the first row's step stand for all (`folded`).
    """
    if not mask.mask.is_sparse:
        return None
    back, ahead = mask.mask.band
    step = mask.mask.stride
    reach = 0 if back is None or ahead is None else (back + ahead + 1) // step
    tiles = mask.tiles(max(TILE_QUERIES, reach // 4), one_residue=one_residue)
    least = KERNEL_CALL_WEIGHTS if len(tiles) > 1 else 0  # one call is what the whole would be too
    spent = sum(max(least, count(rows) * count(keys) * (step if one_residue else 1)) for rows, keys in tiles)
    return tiles if MIN_SAVING * spent <= mask.queries * mask.keys else None


def causal_chunks(q: Tensor, k: Tensor, v: Tensor, kernel: Kernel, parts: int = 4) -> Tensor:
    """Causal attention in a few parts: the keys ahead of a part are left out, where a kernel would not notice."""
    N = q.shape[2]
    done = []
    for rows in slices(N, -(-N // parts)):
        # A part's own triangle, aligned at its end.
        permitted = torch.ones(rows.stop - rows.start, rows.stop, dtype=torch.bool, device=q.device).tril(rows.start)
        done.append(kernel(q[:, :, rows], k[:, :, : rows.stop], v[:, :, : rows.stop], permitted))
    return joined(done, 2)


def compute_part(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BoundMask | None,
    bias: Bias | None,
    kernel: Kernel,
    rows: slice,
    keys: Index,
    items: slice = slice(None),
) -> Tensor:
    """One part, already cut out of q, k and v, under what the mask and the bias say of it."""
    if not k.shape[2]:
        return torch.zeros_like(q)  # nothing to look at
    if mask is not None and mask.is_causal and bias is None and isinstance(keys, slice) and rows.start == keys.start:
        return kernel(q, k, v, causal=True)
    permitted = None if mask is None else of_items(mask.tile(rows, keys), items)
    added = None if bias is None else of_items(cut(bias, rows, keys), items)
    return kernel(q, k, v, additive(permitted, added, q.dtype))


def joined(parts: list[Tensor], axis: int) -> Tensor:
    """The parts in one tensor, laid out as the kernels lay out theirs, (B, N, H, d): joining heads is then free."""
    return torch.cat([part.transpose(1, 2) for part in parts], {0: 0, 2: 1}[axis]).transpose(1, 2)


def of_items(tensor: Tensor, items: slice) -> Tensor:
    """These batch items of what broadcasts to (B, H, N, M)."""
    return tensor if len(tensor) == 1 else tensor[items]
