"""Softmax attention of padded and packed batches: a kernel call per item or per sequence, without the masked keys.

Axes: B batch, H heads, N queries, M keys, d head_dim.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from attnlab.masks.rule import Rule
from attnlab.ops.backends.sdpa import Kernel
from attnlab.ops.backends.tiles import MAX_MATRIX_VALUES, MIN_TILE_KEYS, InParts, compute_part, concatenate
from attnlab.ops.call import AttentionCall
from attnlab.ops.dispatch import Dispatch

MAX_REAL_FRACTION = 0.9
"""The fraction of real keys above which a call per item does not pay off."""

MIN_ITEM_KEYS = 512
"""Keys from which a mask for each batch item costs more than a kernel call for each."""


class Plan(NamedTuple):
    """How to split a call: into sequences of one row, or into batch items with their real keys (and real queries)."""

    kind: Literal["segments", "items", "items of tokens"]
    rule: Rule
    """The conjunct of the mask that the split replaces."""
    ranges: list[slice]


class Segments(InParts):
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

    def compute(self, call: AttentionCall, kernel: Kernel, plan: Plan) -> Tensor:
        q, k, v, bias, N = call.q, call.k, call.v, call.bias, call.q.shape[2]
        rest = None if call.mask is None else call.mask.without(plan.rule)
        if plan.kind == "segments":
            outs = [compute_part(q[:, :, r], k[:, :, r], v[:, :, r], rest, bias, kernel, r, r) for r in plan.ranges]
            return concatenate(outs, 2)
        outs = []
        # Split, not sliced: the gradient of a slice is as large as the whole.
        for b, (keys, Q, K, V) in enumerate(zip(plan.ranges, q.split(1), k.split(1), v.split(1), strict=True)):
            rows = keys if plan.kind == "items of tokens" else slice(0, N)
            item = Q[:, :, rows], K[:, :, keys], V[:, :, keys], rest, bias, kernel, rows, keys, slice(b, b + 1)
            out = compute_part(*item)
            outs.append(out if plan.kind == "items" else F.pad(out, (0, 0, rows.start, N - rows.stop)))
        return concatenate(outs, 0)

    def explain(self, call: AttentionCall, plan: Plan) -> Dispatch:
        if plan.kind == "segments":
            return Dispatch("segments", f"{len(plan.ranges)} sequences packed in one row")
        real = sum(part.stop - part.start for part in plan.ranges) / (call.q.shape[0] * call.k.shape[2])
        return Dispatch("items", f"{real:.0%} of the keys are real; one call per item leaves out the rest")
