"""Softmax attention: the fused computation, and the map that it never writes down.

Axes: B batch, H heads, G of them to a head of keys, N queries, M keys, d head_dim. A mechanism with one head may leave
H away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.masks.bound import Index, count, slices
from attnlab.ops.attention_map import AttentionMap
from attnlab.ops.backends import eager
from attnlab.ops.backends.flex import block_mask, flexible
from attnlab.ops.backends.sdpa import Kernel
from attnlab.ops.backends.tiles import additive, fitting_tiles, folded, itemwise, segmentwise, tiled, triangular
from attnlab.ops.bias import Bias, RelativeBias, cut, four_axes, of_heads
from attnlab.ops.dispatch import Dispatch, can_inspect_values, record
from attnlab.ops.rowwise import RowwiseMap, scaled_dot_product

SHORT = 128
"""Below this length a kernel is through before anything could be saved."""

LONG = 512
"""From this many keys, a matrix per batch item costs more than a kernel call for each."""

TRIANGLE = (192, 768)
"""Between these lengths the causal kernel computes most of what it then forbids."""

FUSED = Dispatch("fused", "every key may be looked at")

MATRIX = 2**22
"""Numbers of a mask or a bias that are materialized at most; larger ones are made for some rows at a time."""

TILE = 2**20
"""Numbers of a matrix that are made at a time where all would be too many."""

DROPPED = 2**22
"""Weights per item that are kept at most for the backward pass of a dropout; more are computed again, in tiles."""

FEW = 16
"""Queries up to which the heads that share keys are read as one head with more queries: the keys are not copied."""


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BoundMask | None = None,
    bias: Bias | None = None,
    *,
    dropout: float = 0.0,
    sink: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """``softmax(q kᵀ / √d + bias) v`` over the permitted keys, by PyTorch's fused kernels.

    Args:
        q: (B, H, N, d), or (B, N, d) for one head.
        k: (B, H, M, d), or with H / G heads, each for G heads of queries that follow each other.
        v: (B, H, M, w), with as many heads as ``k``.
        mask: who may look at whom.
        bias: added to the scores, broadcastable to (B, H, N, M).
        dropout: the probability of dropping a weight; 0 outside of training.
        sink: (H,), a logit in every row that takes weight and gives nothing (gpt-oss 2025).
        softcap: scores become ``softcap · tanh(score / softcap)`` before the bias (Gemma 2, 2024, section 2).

    Returns:
        (B, H, N, w); zeros in a row that may look at nothing.

    Raises:
        ValueError: for heads of keys that do not divide those of the queries.

    Source: Vaswani et al. 2017, section 3.2.1; Dao et al. 2022 for the kernel that never writes the map; Shazeer 2019
    and Ainslie et al. 2023 for heads that share keys.
    """
    if q.dim() == 3:  # the fused kernels want a head axis
        q, k, v = q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)
        return softmax_attention(q, k, v, mask, bias, dropout=dropout, sink=sink, softcap=softcap).squeeze(1)
    if bias is not None:
        bias = four_axes(bias)
    if mask is not None and can_inspect_values(q) and (runs := mask.head_groups()):
        return _by_head(runs, q, k, v, bias, dropout=dropout, sink=sink, softcap=softcap)
    if softcap is not None:
        core = SoftmaxMap(q, k, mask, bias, sink=sink, softcap=softcap)
        return core.by_rows().apply(_repeat_kv(v, _groups(q, v)), dropout=dropout)
    groups, width = _groups(q, k), v.shape[-1]
    kernel = Kernel(1 / math.sqrt(q.shape[-1]), sink, dropout)
    q, k, v = _pad_head_dim(q, k, v)
    if torch.compiler.is_compiling():  # one graph for every length: nothing may depend on what the tensors hold
        k, v = _repeat_kv(k, groups), _repeat_kv(v, groups)
        return _unpad(_whole(q, k, v, mask, bias, kernel), width)
    if mask is not None and mask.allows_all:
        mask = None
    if groups > 1 and q.shape[2] <= FEW and not dropout and sink is None and can_inspect_values(q):
        return _unpad(_shared(q, k, v, mask, bias, kernel), width)
    path, compute = _choose(q, _repeat_kv(k, groups), _repeat_kv(v, groups), mask, bias, kernel)
    record(partial(_with_dropout, path, dropout))
    return _unpad(compute(), width)


def softmax_weights(q: Tensor, k: Tensor, mask: BoundMask | None = None, bias: Bias | None = None) -> Tensor:
    """``softmax(q kᵀ / √d + bias)`` written down: (B, H, N, M), zero where a query may not look.

    Takes what `softmax_attention` takes. A row that may look at nothing is zero.
    """
    if q.dim() == 3:
        return softmax_weights(q.unsqueeze(1), k.unsqueeze(1), mask, bias)
    return SoftmaxMap(q, k, mask, bias).materialize()


def masked_softmax(scores: Tensor, mask: BoundMask | Tensor | None = None, sink: Tensor | None = None) -> Tensor:
    """``softmax(scores)`` over the permitted keys: (B, H, N, M), zero elsewhere.

    A score of -inf is not permitted either. A fully masked row is zero, and so is its gradient.

    Args:
        scores: (B, H, N, M).
        mask: a bound mask, or a Boolean tensor of four axes.
        sink: (H,), a logit in every row that takes weight and is not shown.
    """
    return eager.masked_softmax(scores, mask.tensor() if isinstance(mask, BoundMask) else mask, sink)


class SoftmaxMap(AttentionMap):
    """The core of softmax attention; takes what `softmax_attention` takes, but the values."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        mask: BoundMask | None = None,
        bias: Bias | None = None,
        *,
        sink: Tensor | None = None,
        softcap: float | None = None,
    ) -> None:
        if q.dim() == 3:
            q, k = q.unsqueeze(1), k.unsqueeze(1)
        super().__init__((*q.shape[:3], k.shape[2]), q)
        self.q, self.k, self.mask, self.sink, self.softcap = q, k, mask, sink, softcap
        self.bias = None if bias is None else four_axes(bias)

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the output for these values: (B, H, M, w) to (B, H, N, w).

        Args:
            values: (B, H, M, w), or with 1 in place of B or H, or with as many heads as the keys.
            dropout: the probability of dropping a weight; 0 outside of training.

        Raises:
            ValueError: for values of another batch, number of heads or length.
        """
        (B, H), (heads, M) = self.q.shape[:2], self.k.shape[1:3]
        if values.dim() != 4 or not all(
            size in sizes for size, sizes in zip(values.shape, [(1, B), (1, heads, H), (M,)], strict=False)
        ):
            raise ValueError(
                f"values must have shape (batch, heads, keys, width) = ({B}, {H}, {M}, width), with 1 in place of the "
                f"batch or the heads, or {heads} heads as the keys have, not {tuple(values.shape)}"
            )
        k = self.k if values.shape[1] in (1, heads) else _repeat_kv(self.k, H // heads)
        values = values.expand(B, k.shape[1], -1, -1)
        return softmax_attention(
            self.q, k, values, self.mask, self.bias, dropout=dropout, sink=self.sink, softcap=self.softcap
        )

    def _rows(self, rows: Tensor) -> Tensor:
        return self.by_rows()._rows(rows)

    def by_rows(self) -> RowwiseMap:
        """The same, with its weights written down a few rows at a time."""
        k, sink, softcap = _repeat_kv(self.k, _groups(self.q, self.k)), self.sink, self.softcap

        def capped(q: Tensor, k: Tensor) -> Tensor:
            scores = scaled_dot_product(q, k)
            return scores if softcap is None else softcap * torch.tanh(scores / softcap)

        def normalize(scores: Tensor, permitted: Tensor | None) -> Tensor:
            return masked_softmax(scores, permitted, sink)

        return RowwiseMap(self.q, k, self.mask, self.bias, normalize, score_fn=capped)


def _groups(q: Tensor, k: Tensor) -> int:
    """G, how many heads of queries share one of keys."""
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} heads of queries cannot share {k.shape[1]} heads of keys; it must divide them")
    return q.shape[1] // k.shape[1]


def _repeat_kv(keys: Tensor, groups: int) -> Tensor:
    """(B, H / G, M, d) as (B, H, M, d). The copy costs what one query more for each head would."""
    return keys if groups == 1 else keys.repeat_interleave(groups, 1)


def _pad_head_dim(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All of one width, filled with zeros, which change no score: the fused kernels take no other."""
    more = v.shape[-1] - q.shape[-1]
    if more > 0:
        return F.pad(q, (0, more)), F.pad(k, (0, more)), v
    return q, k, F.pad(v, (0, -more)) if more else v


def _unpad(out: Tensor, width: int) -> Tensor:
    return out if out.shape[-1] == width else out[..., :width]


def _shared(q: Tensor, k: Tensor, v: Tensor, mask: BoundMask | None, bias: Bias | None, kernel: Kernel) -> Tensor:
    """A few queries of G heads that share keys, as G times as many queries of one head: nothing is repeated."""
    (H, N), (heads, M), G = q.shape[1:3], k.shape[1:3], _groups(q, k)
    rows = slice(0, N)
    keys = slice(0, M) if mask is None else mask.key_range(rows)
    why = "{} heads of {} queries read {} heads of {} keys as they lie"
    record(lambda: Dispatch("shared", why.format(H, N, heads, keys.stop - keys.start)))

    def folded(matrix: Tensor) -> Tensor:
        matrix = matrix.expand(matrix.shape[0], H, N, keys.stop - keys.start)
        return matrix.unflatten(1, (heads, G)).flatten(2, 3)

    permitted = None if mask is None else folded(mask.tile(rows, keys))
    added = None if bias is None else folded(cut(bias, rows, keys))
    out = kernel(
        q.unflatten(1, (heads, G)).flatten(2, 3),
        k[:, :, keys],
        v[:, :, keys],
        additive(permitted, added, q.dtype),
    )
    return out.unflatten(2, (G, N)).flatten(1, 2)


def _by_head(
    runs: list[tuple[slice, BoundMask]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Bias | None,
    *,
    sink: Tensor | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Heads with a rule of their own, each run of them by the way that is best for its rule."""
    k, v = _repeat_kv(k, _groups(q, k)), _repeat_kv(v, _groups(q, v))
    parts = []
    for heads, mask in runs:
        added = None if bias is None else of_heads(bias, heads)
        own = None if sink is None else sink[heads]
        given = q[:, heads], k[:, heads], v[:, heads], mask, added
        parts.append(softmax_attention(*given, dropout=dropout, sink=own, softcap=softcap))
    return torch.cat([part.transpose(1, 2) for part in parts], 2).transpose(1, 2)  # laid out as the kernels do


def _choose(
    q: Tensor, k: Tensor, v: Tensor, mask: BoundMask | None, bias: Bias | None, kernel: Kernel
) -> tuple[Callable[[], Dispatch], Callable[[], Tensor]]:
    """The fastest way that gives exactly what is asked for. Thresholds are measured: ``benchmarks``, part cores."""
    N, M = q.shape[2], k.shape[2]
    if can_inspect_values(q):
        if mask is not None and (found := _parts(q, k, v, mask, bias, kernel)):
            return found
        if found := _in_rows(q, k, v, mask, bias, kernel):
            return found
    elif mask is not None and not (kernel.dropout or bias is not None or kernel.sink is not None or mask.is_causal):
        blocks = block_mask(q, k, mask)
        if blocks is not None:
            why = "{} forbids {:.0f}% of the blocks on a GPU, and these are left out"
            text = partial(why.format, mask.mask, blocks.sparsity())
            return lambda: Dispatch("flex", text()), partial(flexible, q, k, v, blocks, kernel.scale)

    def path() -> Dispatch:
        if bias is None and mask is None:
            return FUSED
        if bias is None and mask is not None and mask.is_causal:
            return Dispatch("causal", "a plain triangle, for which the kernel needs no matrix")
        given = [*(["a bias"] if bias is not None else []), *([f"{mask.mask}"] if mask is not None else [])]
        return Dispatch("matrix", f"{' and '.join(given)}, as a matrix of {N} queries and {M} keys")

    return path, partial(_whole, q, k, v, mask, bias, kernel)


def _with_dropout(path: Callable[[], Dispatch], dropout: float) -> Dispatch:
    taken = path()
    return replace(taken, why=f"{taken.why}; dropout {dropout:g} of the weights") if dropout else taken


def _in_rows(
    q: Tensor, k: Tensor, v: Tensor, mask: BoundMask | None, bias: Bias | None, kernel: Kernel
) -> tuple[Callable[[], Dispatch], Callable[[], Tensor]] | None:
    """Some rows at a time, where the matrix of all would be large; None where there is none, or it exists already."""
    N, M = q.shape[2], k.shape[2]
    items = heads = 1
    if bias is not None:
        items, heads = bias.items_and_heads if isinstance(bias, RelativeBias) else bias.shape[:2]
        exists = mask is None and isinstance(bias, Tensor)
    else:
        exists = mask is None or mask.is_causal or not mask.mask.by_position
    if mask is not None:
        items, heads = max(items, mask.mask.batch_size), max(heads, mask.mask.num_heads)
    large = not exists and items * heads * N * M > MATRIX
    if kernel.dropout and q.shape[1] * N * M > DROPPED:
        (items, heads), large = q.shape[:2], True
    if not large:
        return None
    size = max(1, TILE // (items * heads * M))
    tiles: list[tuple[slice, Index]]
    tiles = [(rows, slice(0, M)) for rows in slices(N, size)] if mask is None else mask.tiles(size)
    why = f"a matrix of {size} of {N} rows at a time; that of all would be large"
    return lambda: Dispatch("rows", why), partial(tiled, q, k, v, mask, bias, kernel, tiles, recompute=True)


def _whole(q: Tensor, k: Tensor, v: Tensor, mask: BoundMask | None, bias: Bias | None, kernel: Kernel) -> Tensor:
    """One call of the fused kernel."""
    if bias is None and (mask is None or mask.is_causal):
        return kernel(q, k, v, causal=mask is not None)
    out = kernel(q, k, v, additive(None if mask is None else mask.tensor(), bias, q.dtype))
    if torch.compiler.is_compiling() and mask is not None and mask.mask.num_heads > 1:
        # A row may be fully masked in one head alone; the kernels make it zero, what the exporter to ONNX writes does
        # not.
        out = out.masked_fill(~mask.tensor().any(-1, keepdim=True), 0.0)
    return out


def _parts(
    q: Tensor, k: Tensor, v: Tensor, mask: BoundMask, bias: Bias | None, kernel: Kernel
) -> tuple[Callable[[], Dispatch], Callable[[], Tensor]] | None:
    """A way that leaves out what may not be looked at; None where there is too little of it."""
    B, N, M = q.shape[0], q.shape[2], k.shape[2]
    if M < SHORT or not B:
        return None
    folds = bias is None and mask.can_fold
    if tiles := fitting_tiles(mask, one_residue=folds):
        path = partial(_tiles_path, mask, tiles)
        if folds:
            return path, partial(folded, q, k, v, mask, kernel, tiles)
        return path, partial(tiled, q, k, v, mask, bias, kernel, tiles)
    if N < SHORT or mask.first:
        return None
    for rule in mask.mask.conjuncts:
        if mask.offset == 0 and N == M and (segments := rule.segments(N)) and 1 < len(segments) <= N // 4:
            why = f"{len(segments)} sequences packed in one row"
            return partial(Dispatch, "segments", why), partial(
                segmentwise, q, k, v, mask.without(rule), bias, segments, kernel
            )
        if bias is not None and q.shape[1] * N * M > MATRIX:
            continue  # better some rows of it than the whole of it for each item
        queries = rule.token_ranges(N) if mask.offset == 0 and N == M else None
        spans = rule.key_ranges(M) if queries is None else queries
        if spans is not None and len(spans) == B:
            real, rest = sum(span.stop - span.start for span in spans), mask.without(rule)
            if real <= 0.9 * B * M or ((rest or queries) is not None and M >= LONG):
                why = f"{real / (B * M):.0%} of the keys are real; an item at a time leaves out the rest"
                return partial(Dispatch, "items", why), partial(
                    itemwise, q, k, v, rest, bias, spans, kernel, queries=queries is not None
                )
    if bias is None and mask.is_causal and TRIANGLE[0] <= N <= TRIANGLE[1]:
        why = f"causal, {N} long: four parts leave out most of what is ahead"
        return partial(Dispatch, "triangle", why), partial(triangular, q, k, v, kernel)
    return None


def _tiles_path(mask: BoundMask, tiles: list[tuple[slice, Index]]) -> Dispatch:
    back, ahead = mask.mask.band
    if back is not None and ahead is not None:
        return Dispatch("window", f"{mask.mask} reaches {back} back and {ahead} ahead of {mask.keys} keys")
    seen = sum(count(rows) * count(keys) for rows, keys in tiles) / sum(count(rows) for rows, _ in tiles)
    return Dispatch("tiles", f"{mask.mask} lets a query reach {seen:.0f} of {mask.keys} keys on average")
