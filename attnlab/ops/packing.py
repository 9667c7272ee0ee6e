"""Packing: the real tokens of a padded batch are moved into one row without padding, and back.

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
    (B, N), rules = x.shape[:2], mask.mask.conjuncts
    for rule in rules:
        ranges = rule.token_ranges(N)
        if ranges is None or len(ranges) != B or not all(other.is_relative for other in rules if other is not rule):
            continue
        lengths = torch.tensor([tokens.stop - tokens.start for tokens in ranges])
        real = int(lengths.sum())
        if not MIN_TOKENS_PER_ITEM * B <= real <= MAX_REAL_FRACTION * B * N:
            return None
        groups = [group.mask for _, group in mask.head_groups() or [(slice(None), mask)]]
        if any(group.stride > 1 and None in group.band for group in groups):
            return None  # in one row, a stride would reach the keys of other items
        index = torch.cat([torch.arange(b * N + part.start, b * N + part.stop) for b, part in enumerate(ranges)])
        row = documents(torch.repeat_interleave(torch.arange(B), lengths))
        for other in rules:
            row = row if other is rule else other & row
        record(partial(_explain, real / (B * N)))
        return Packed((B, N), index, row.bind(real, shape=(1, heads)))
    return None


def _explain(fraction: float) -> Dispatch:
    return Dispatch("packed", f"{fraction:.0%} of the tokens are real; the others are not projected")
