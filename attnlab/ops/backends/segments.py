"""Softmax attention of padded and packed batches: a kernel call per item or per sequence, without the masked keys.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.masks.rule import Rule
from attnlab.ops.backends.sdpa import Kernel, unpad
from attnlab.ops.backends.tiles import MAX_MATRIX_VALUES, MIN_TILE_KEYS, compute_part, joined
from attnlab.ops.bias import Bias
from attnlab.ops.call import AttentionCall
from attnlab.ops.dispatch import Dispatch

MAX_REAL_FRACTION = 0.9
"""The fraction of real keys above which a call per item does not pay off."""

MIN_ITEM_KEYS = 512
"""Keys from which a mask for each batch item costs more than a kernel call for each."""


class Plan(NamedTuple):
    """How to split a call."""

    kind: Literal["segments", "items", "items of tokens"]
    rule: Rule
    """The conjunct of the mask that the split replaces."""
    ranges: list[slice]


class Segments:
    """Sequences that are packed in one row, or items of a padded batch, one by one."""

    def applies(self, call: AttentionCall) -> Plan | None:
        """Return the ranges of tokens or keys."""
        mask, bias, (B, H, N), M = call.mask, call.bias, call.q.shape[:3], call.k.shape[2]
        if mask is None or not call.can_inspect or min(N, M) < MIN_TILE_KEYS or not B or mask.first:
            return None
        aligned = mask.offset == 0 and N == M
        for rule in mask.mask.conjuncts:
            if aligned and (segments := rule.segments(N)) and 1 < len(segments) <= N // 4:
                return Plan("segments", rule, segments)
            if bias is not None and H * N * M > MAX_MATRIX_VALUES:
                continue  # some rows of the bias at a time are better than all of it for each item
            tokens = rule.token_ranges(N) if aligned else None
            ranges = rule.key_ranges(M) if tokens is None else tokens
            if ranges is None or len(ranges) != B:
                continue
            real = sum(part.stop - part.start for part in ranges)
            has_matrix = tokens is not None or len(mask.mask.conjuncts) > 1
            if real <= MAX_REAL_FRACTION * B * M or (has_matrix and M >= MIN_ITEM_KEYS):
                return Plan("items" if tokens is None else "items of tokens", rule, ranges)
        return None

    def run(self, call: AttentionCall, plan: Plan) -> Tensor:
        """Compute the parts."""
        width, call = call.v.shape[-1], call.expand()
        q, k, v, mask, bias = call.q, call.k, call.v, call.mask, call.bias
        rest = None if mask is None else mask.without(plan.rule)
        kernel = Kernel(call.score_scale, call.sink, call.dropout)
        if plan.kind == "segments":
            return unpad(segmentwise(q, k, v, rest, bias, plan.ranges, kernel), width)
        queries = plan.kind == "items of tokens"
        return unpad(itemwise(q, k, v, rest, bias, plan.ranges, kernel, queries=queries), width)

    def explain(self, call: AttentionCall, plan: Plan) -> Dispatch:
        """Return the name, and why."""
        if plan.kind == "segments":
            return Dispatch("segments", f"{len(plan.ranges)} sequences packed in one row")
        real = sum(part.stop - part.start for part in plan.ranges) / (call.q.shape[0] * call.k.shape[2])
        return Dispatch("items", f"{real:.0%} of the keys are real; one call per item leaves out the rest")


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
        out = compute_part(*part)
        done.append(F.pad(out, (0, 0, rows.start, N - rows.stop)) if queries else out)
    return joined(done, 0)


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
    done = [compute_part(q[:, :, own], k[:, :, own], v[:, :, own], rest, bias, kernel, own, own) for own in segments]
    return joined(done, 2)
