"""Packing: the real tokens of a padded batch in one row, without the padding, and back.

Axes: B batch, N length, T real tokens, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attnlab.masks import BoundMask, documents
from attnlab.ops.dispatch import Dispatch, record
from attnlab.utils.tracing import can_inspect_values

MAX_REAL_FRACTION = 0.9
"""The fraction of real tokens above which the copies cost as much as the padding."""

MIN_TOKENS_PER_ITEM = 64
"""Real tokens per item below which a kernel call for each item costs more than the padding."""


@dataclass(frozen=True)
class Packed:
    """The indices of the real tokens (T,) in the flattened batch, and the mask of the packed row."""

    shape: tuple[int, int]
    index: Tensor
    mask: BoundMask

    def run(self, compute: Callable[[Tensor, BoundMask], Tensor], x: Tensor) -> Tensor:
        """Return ``compute`` of the real tokens (1, T, D) as (B, N, D), with zeros in the padding."""
        out = compute(x.flatten(0, 1).index_select(0, self.index).unsqueeze(0), self.mask).squeeze(0)
        whole = out.new_zeros(self.shape[0] * self.shape[1], out.shape[-1])
        return whole.index_copy(0, self.index, out).unflatten(0, self.shape)


def packed(x: Tensor, mask: BoundMask, heads: int) -> Packed | None:
    """Return how to pack ``x`` (B, N, D) under this mask; None if that is impossible or not faster.

    It is possible where the mask is ``padding(..., mask_queries=True)`` and the rest depends on distances alone,
    which packing keeps.
    """
    if torch.compiler.is_compiling() or MAX_REAL_FRACTION * x.shape[1] < MIN_TOKENS_PER_ITEM:
        # A traced length stays free; a short row is not worth packing.
        return None
    if not can_inspect_values(x) or torch.is_autocast_enabled("cpu") or mask.queries != mask.keys or not x.numel():
        return None
    (B, N), factors = x.shape[:2], mask.mask.conjuncts
    for rule in factors:
        spans = rule.token_ranges(N)
        if spans is None or len(spans) != B or not all(f.is_relative for f in factors if f is not rule):
            continue
        lengths = torch.tensor([span.stop - span.start for span in spans])
        real = int(lengths.sum())
        if not MIN_TOKENS_PER_ITEM * B <= real <= MAX_REAL_FRACTION * B * N:
            return None
        rules = [own.mask for _, own in mask.head_groups() or [(slice(None), mask)]]
        if any(own.stride > 1 and None in own.band for own in rules):
            return None  # in one row, a stride would reach the keys of other items
        index = torch.cat([torch.arange(b * N + span.start, b * N + span.stop) for b, span in enumerate(spans)])
        row = documents(torch.repeat_interleave(torch.arange(B), lengths))
        for other in factors:
            row = row if other is rule else other & row
        record(partial(_path, real / (B * N)))
        return Packed((B, N), index, row.bind(real, shape=(1, heads)))
    return None


def _path(share: float) -> Dispatch:
    return Dispatch("packed", f"{share:.0%} of the tokens are real; the others are left out before they are projected")
