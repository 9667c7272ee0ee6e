"""Softmax attention in tiles of queries, each with the keys that they may attend to: one kernel call per tile.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnlab.masks import BoundMask
from attnlab.masks.bound import Index, count, in_order, slices
from attnlab.ops.backends.sdpa import CAUSAL_CHUNK_LENGTHS, Kernel, additive, unpad
from attnlab.ops.bias import Bias, cut
from attnlab.ops.call import AttentionCall
from attnlab.ops.dispatch import Dispatch

MIN_TILE_KEYS = 128
"""Keys below which one kernel call is faster than several."""

TILE_QUERIES = 64
"""Queries per tile; larger tiles include more keys that are masked for most of their queries."""

KERNEL_CALL_WEIGHTS = 2**12
"""Attention weights that take as long to compute as one more kernel call."""

MIN_SAVING = 1.5
"""The computed weights must be fewer by this factor for tiles to be used."""

MAX_MATRIX_VALUES = 2**22
"""Values of a mask or a bias that are materialized at once; a larger matrix is computed for some rows at a time."""

MATRIX_TILE_VALUES = 2**20
"""Values per tile of a matrix that is too large to be materialized."""

MAX_DROPOUT_WEIGHTS = 2**22
"""Weights per item that are kept for the backward pass of a dropout; more are recomputed, in tiles."""

Tiles = list[tuple[slice, Index]]
"""Some queries, and the keys that they attend to."""


class InParts:
    """The base class of backends that call the kernel for each part of a call."""

    def run(self, call: AttentionCall, plan: Any) -> Tensor:
        width, call = call.v.shape[-1], call.expand()
        return unpad(self.compute(call, Kernel(call.score_scale, call.sink, call.dropout), plan), width)

    def compute(self, call: AttentionCall, kernel: Kernel, plan: Any) -> Tensor:
        """Return the output of an expanded call, (B, H, N, d)."""
        raise NotImplementedError


class Tiled(InParts):
    """A mask under which a few queries attend to few keys: a window, blocks, strides."""

    def applies(self, call: AttentionCall) -> tuple[Tiles, bool] | None:
        """Return the tiles, and whether they are those of one residue of the stride."""
        mask = call.mask
        if mask is None or not call.can_inspect or call.k.shape[2] < MIN_TILE_KEYS or not call.q.shape[0]:
            return None
        folds = call.bias is None and mask.can_fold
        tiles = sparse_tiles(mask, one_residue=folds)
        return (tiles, folds) if tiles else None

    def compute(self, call: AttentionCall, kernel: Kernel, plan: tuple[Tiles, bool]) -> Tensor:
        tiles, folds = plan
        return folded(call, kernel, tiles) if folds else tiled(call, kernel, tiles)

    def explain(self, call: AttentionCall, plan: tuple[Tiles, bool]) -> Dispatch:
        mask, (tiles, _) = call.mask, plan
        assert mask is not None
        back, ahead = mask.mask.band
        if back is not None and ahead is not None:
            return Dispatch("window", f"{mask.mask} reaches {back} back and {ahead} ahead of {mask.keys} keys")
        reached = sum(count(rows) * count(keys) for rows, keys in tiles) / sum(count(rows) for rows, _ in tiles)
        return Dispatch("tiles", f"{mask.mask} lets a query reach {reached:.0f} of {mask.keys} keys on average")


class CausalChunks(InParts):
    """Causal attention of medium length in four chunks of queries, without the keys after each chunk."""

    def applies(self, call: AttentionCall) -> bool | None:
        mask, (shortest, longest) = call.mask, CAUSAL_CHUNK_LENGTHS
        if mask is None or call.bias is not None or mask.first or not call.can_inspect:
            return None  # a traced length is not compared: it stays free
        return True if mask.is_causal and shortest <= call.q.shape[2] <= longest and call.q.shape[0] else None

    def compute(self, call: AttentionCall, kernel: Kernel, plan: bool) -> Tensor:
        (q, k, v), outs = (call.q, call.k, call.v), []
        for rows in slices(q.shape[2], -(-q.shape[2] // 4)):
            # The causal mask of the chunk, aligned at the end.
            allowed = torch.ones(rows.stop - rows.start, rows.stop, dtype=torch.bool, device=q.device).tril(rows.start)
            outs.append(kernel(q[:, :, rows], k[:, :, : rows.stop], v[:, :, : rows.stop], allowed))
        return concatenate(outs, 2)

    def explain(self, call: AttentionCall, plan: bool) -> Dispatch:
        return Dispatch("triangle", f"causal, {call.q.shape[2]} long: four chunks leave out most masked keys")


class Rows(InParts):
    """Some rows at a time, for a matrix that is large and not materialized yet, or for much dropout."""

    def applies(self, call: AttentionCall) -> Tiles | None:
        if (call.mask is None and call.bias is None and not call.dropout) or not call.can_split:
            return None
        mask, bias, (H, N), M = call.mask, call.bias, call.q.shape[1:3], call.k.shape[2]
        if mask is not None and mask.allows_all:
            mask = None
        batch = heads = 1
        if bias is not None:
            batch, heads = bias.shape[:2]
            exists = mask is None and isinstance(bias, Tensor)
        else:
            exists = mask is None or mask.is_causal or not mask.mask.by_position
        if mask is not None:
            batch, heads = max(batch, mask.mask.batch_size), max(heads, mask.mask.num_heads)
        if not call.can_inspect:  # a GPU: only long sequences, because what is recomputed costs more than the memory
            batch = heads = 1
        large = not exists and batch * heads * N * M > MAX_MATRIX_VALUES
        if call.can_inspect and call.dropout and H * N * M > MAX_DROPOUT_WEIGHTS:
            (batch, heads), large = call.q.shape[:2], True
        if not large:
            return None
        size = max(1, (MATRIX_TILE_VALUES if call.q.is_cpu else MAX_MATRIX_VALUES) // (batch * heads * M))
        return [(rows, slice(0, M)) for rows in slices(N, size)] if mask is None else mask.tiles(size)

    def compute(self, call: AttentionCall, kernel: Kernel, plan: Tiles) -> Tensor:
        return tiled(call, kernel, plan, recompute=True)

    def explain(self, call: AttentionCall, plan: Tiles) -> Dispatch:
        size = count(plan[0][0])
        return Dispatch("rows", f"{size} of {call.q.shape[2]} rows at a time, because the whole matrix is large")


def tiled(call: AttentionCall, kernel: Kernel, tiles: Tiles, *, recompute: bool = False) -> Tensor:
    """Return the output of an expanded call, tile by tile; the keys of a window are a view, not a copy.

    Source: Beltagy et al. 2020, "Longformer", section 3.1, and Zaheer et al. 2020, "Big Bird", for the patterns.
    """

    def part(rows: slice, keys: Index) -> Tensor:
        k, v = (t[:, :, keys] if isinstance(keys, slice) else t.index_select(2, keys) for t in (call.k, call.v))
        return compute_part(call.q[:, :, rows], k, v, call.mask, call.bias, kernel, rows, keys)

    return by_tiles(part, tiles, call.q, recompute=recompute, random=kernel.dropout > 0)


def by_tiles(
    part: Callable[[slice, Index], Tensor], tiles: Tiles, q: Tensor, *, recompute: bool = True, random: bool = False
) -> Tensor:
    """Return ``part`` of every tile, (B, H, n, w), as one tensor (B, H, N, w), laid out as (B, N, H, w).

    With ``recompute`` and several tiles, the backward pass computes each again: keeping what it needs of all would be
    the whole matrix. ``random`` tells whether ``part`` draws random numbers, on the device of ``q``.
    """
    if len(tiles) == 1:
        return part(*tiles[0])

    def compute(rows: slice, keys: Index) -> Tensor:
        if not torch.is_grad_enabled():
            return part(rows, keys)
        # Only from a tensor among the arguments does `checkpoint` know whose random numbers to draw again.
        arguments = (lambda rows, keys, q: part(rows, keys)), rows, keys, q
        out: Tensor = checkpoint(*arguments, use_reentrant=False, preserve_rng_state=random)
        return out

    outs = preallocated(compute, tiles) if recompute else [part(*tile) for tile in tiles]
    return in_order([out.transpose(1, 2) for out in outs], [rows for rows, _ in tiles], 1).transpose(1, 2)


def preallocated(compute: Callable[[slice, Index], Tensor], tiles: Tiles) -> list[Tensor]:
    """Return ``compute`` of every tile, (B, H, n, w) each.

    The results are allocated before the temporary tensors of the tiles. Allocated after them, they would keep the
    allocator from reusing that memory, and the process would grow by the whole matrix.
    """
    first = compute(*tiles[0])
    B, H, _, width = first.shape
    outs = [first.new_empty(B, count(rows), H, width).transpose(1, 2) for rows, _ in tiles[1:]]
    return [first, *(out.copy_(compute(*tile)) for out, tile in zip(outs, tiles[1:], strict=True))]


def folded(call: AttentionCall, kernel: Kernel, tiles: Tiles) -> Tensor:
    """Return the output of `tiled` for a mask with `BoundMask.can_fold` and without a bias.

    The rows of one residue of the stride become a batch item, and all residues are computed in one call.
    """
    mask = call.mask
    assert mask is not None
    B, N, stride = call.q.shape[0], call.q.shape[2], mask.mask.stride
    q, k, v = (F.pad(t, (0, 0, 0, -N % stride)).unflatten(2, (-1, stride)) for t in (call.q, call.k, call.v))
    q, k, v = (t.permute(0, 3, 1, 2, 4).flatten(0, 1) for t in (q, k, v))

    def part(q: Tensor, k: Tensor, v: Tensor, rows: slice, keys: slice) -> Tensor:
        permitted = mask.folded_tile(rows, keys)
        if permitted.shape[:2] != (1, 1):
            permitted = permitted.expand(B, stride, *permitted.shape[2:])
        return kernel(q, k, v, permitted.flatten(0, 1))

    # The weights of a dropout, and a mask for every residue, have N² / stride entries: they are recomputed.
    recompute = torch.is_grad_enabled() and (kernel.dropout > 0 or not mask.mask.is_relative or N % stride > 0)
    parts = []
    for rows, keys in tiles:
        assert isinstance(keys, slice)
        row, key = (slice(at.start // stride, at.start // stride + count(at)) for at in (rows, keys))
        tile = q[:, :, row], k[:, :, key], v[:, :, key], rows, keys
        if recompute:
            parts.append(checkpoint(part, *tile, use_reentrant=False, preserve_rng_state=kernel.dropout > 0))
        else:
            parts.append(part(*tile))
    return torch.cat(parts, 2).unflatten(0, (B, stride)).permute(0, 2, 3, 1, 4).flatten(2, 3)[:, :, :N]


def sparse_tiles(mask: BoundMask, *, one_residue: bool) -> Tiles | None:
    """Return the tiles of a sparse mask; None where they would not save enough.

    With ``one_residue``, those of the first residue of the stride stand for all (`folded`).
    """
    if not mask.mask.is_sparse:
        return None
    back, ahead = mask.mask.band
    stride = mask.mask.stride
    reach = 0 if back is None or ahead is None else (back + ahead + 1) // stride
    tiles = mask.tiles(max(TILE_QUERIES, reach // 4), one_residue=one_residue)
    least = KERNEL_CALL_WEIGHTS if len(tiles) > 1 else 0  # the whole matrix would be one call too
    cost = sum(max(least, count(rows) * count(keys) * (stride if one_residue else 1)) for rows, keys in tiles)
    return tiles if MIN_SAVING * cost <= mask.queries * mask.keys else None


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
    """Return the output of these rows, keys and items, which are already cut out of q, k and v."""
    if not k.shape[2]:
        return torch.zeros_like(q)
    if mask is not None and mask.is_causal and bias is None and isinstance(keys, slice) and rows.start == keys.start:
        return kernel(q, k, v, causal=True)
    permitted = None if mask is None else _of_items(mask.tile(rows, keys), items)
    added = None if bias is None else _of_items(cut(bias, rows, keys), items)
    return kernel(q, k, v, additive(permitted, added, q.dtype))


def concatenate(parts: list[Tensor], axis: int) -> Tensor:
    """Concatenate along the axis 0 or 2, laid out as (B, N, H, d) as the kernels do: merging the heads is then free."""
    return torch.cat([part.transpose(1, 2) for part in parts], {0: 0, 2: 1}[axis]).transpose(1, 2)


def _of_items(tensor: Tensor, items: slice) -> Tensor:
    """Select batch items of a tensor that broadcasts to (B, H, N, M)."""
    return tensor if len(tensor) == 1 else tensor[items]
