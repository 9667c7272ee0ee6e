"""Softmax attention in parts: what a query cannot reach is never computed. Every part is a fused kernel's work.

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
from attnlab.ops.backends.sdpa import Kernel
from attnlab.ops.bias import Bias, cut, written

ROWS = 64
"""Queries a tile; more of them reach more keys that most of them may not look at."""

CALL = 2**12
"""Weights that take as long as it takes to call a kernel."""


def tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BoundMask | None,
    bias: Bias | None,
    kernel: Kernel,
    tiles: list[tuple[slice, Index]],
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
            out: Tensor = checkpoint(_part, *given, use_reentrant=False, preserve_rng_state=kernel.dropout > 0)
            return out
        return _part(*given)

    parts = collected(part, tiles) if recompute else [part(*tile) for tile in tiles]
    return in_order([part.transpose(1, 2) for part in parts], [rows for rows, _ in tiles], 1).transpose(1, 2)


def collected(compute: Callable[[slice, Index], Tensor], tiles: list[tuple[slice, Index]]) -> list[Tensor]:
    """``compute`` of every tile, (B, H, n, w).

    The results get their memory before the tiles do theirs. Behind the large temporary tensors of a tile they would
    keep an allocator from using the place of these again, and the process would grow by the whole matrix after all.
    """
    first = compute(*tiles[0])
    B, H, _, width = first.shape
    room = [first.new_empty(B, count(rows), H, width).transpose(1, 2) for rows, _ in tiles[1:]]
    return [first, *(out.copy_(compute(*tile)) for out, tile in zip(room, tiles[1:], strict=True))]


def folded(
    q: Tensor, k: Tensor, v: Tensor, mask: BoundMask, kernel: Kernel, tiles: list[tuple[slice, Index]]
) -> Tensor:
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


def fitting_tiles(mask: BoundMask, *, one_residue: bool) -> list[tuple[slice, Index]] | None:
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
    tiles = mask.tiles(max(ROWS, reach // 4), one_residue=one_residue)
    least = CALL if len(tiles) > 1 else 0  # one call is what the whole would be too
    spent = sum(max(least, count(rows) * count(keys) * (step if one_residue else 1)) for rows, keys in tiles)
    return tiles if 1.5 * spent <= mask.queries * mask.keys else None


def triangular(q: Tensor, k: Tensor, v: Tensor, kernel: Kernel, parts: int = 4) -> Tensor:
    """Causal attention in a few parts: the keys ahead of a part are left out, where a kernel would not notice."""
    N = q.shape[2]
    done = []
    for rows in slices(N, -(-N // parts)):
        # A part's own triangle, aligned at its end.
        permitted = torch.ones(rows.stop - rows.start, rows.stop, dtype=torch.bool, device=q.device).tril(rows.start)
        done.append(kernel(q[:, :, rows], k[:, :, : rows.stop], v[:, :, : rows.stop], permitted))
    return _joined(done, 2)


def itemwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rest: BoundMask | None,
    bias: Bias | None,
    keys: list[slice],
    kernel: Kernel,
    *,
    queries: bool = False,
) -> Tensor:
    """An item at a time, with its real keys alone.

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, d).
        rest: what else the mask says.
        bias: four axes, broadcastable to (B, H, N, M).
        keys: the real keys of every item.
        kernel: computes a part.
        queries: whether these are its real queries too, N = M; the rows of the others are zero.
    """
    N, done = q.shape[2], []
    # Split, not sliced: the gradient of a slice is as large as the whole.
    for b, (own, Q, K, V) in enumerate(zip(keys, q.split(1), k.split(1), v.split(1), strict=True)):
        rows = own if queries else slice(0, N)
        part = Q[:, :, rows], K[:, :, own], V[:, :, own], rest, bias, kernel, rows, own, slice(b, b + 1)
        out = _part(*part)
        done.append(F.pad(out, (0, 0, rows.start, N - rows.stop)) if queries else out)
    return _joined(done, 0)


def segmentwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rest: BoundMask | None,
    bias: Bias | None,
    segments: list[slice],
    kernel: Kernel,
) -> Tensor:
    """Packed sequences, one after the other.

    Args:
        q: (B, H, N, d).
        k: (B, H, N, d).
        v: (B, H, N, d).
        rest: what else the mask says.
        bias: four axes, broadcastable to (B, H, N, N).
        segments: the rows of every sequence.
        kernel: computes a part.
    """
    done = [_part(q[:, :, own], k[:, :, own], v[:, :, own], rest, bias, kernel, own, own) for own in segments]
    return _joined(done, 2)


def _part(
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


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    """The parts in one tensor, laid out as the kernels lay out theirs, (B, N, H, d): joining heads is then free."""
    return torch.cat([part.transpose(1, 2) for part in parts], {0: 0, 2: 1}[axis]).transpose(1, 2)


def additive(permitted: Tensor | None, bias: Bias | None, dtype: torch.dtype) -> Tensor | None:
    """A mask and a bias as the one tensor that the fused kernel takes."""
    if bias is None:
        return permitted
    matrix = written(bias).to(dtype)
    if torch.onnx.is_in_onnx_export():  # its second pass would take another kernel for a bias that asks for a gradient
        matrix = matrix.detach()
    return matrix if permitted is None else matrix.masked_fill(~permitted, -torch.inf)


def of_items(tensor: Tensor, items: slice) -> Tensor:
    """These batch items of what broadcasts to (B, H, N, M)."""
    return tensor if len(tensor) == 1 else tensor[items]
