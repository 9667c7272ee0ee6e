"""Padded batches without their padding: the real tokens of all items in one row, and back.

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

FULL = 0.9
"""Above this share of real tokens the copying costs what the padding did."""

SHORT = 64
"""Below this many real tokens an item, a kernel call for each costs more than the padding did."""


@dataclass(frozen=True)
class Packed:
    """Where the real tokens are: ``index`` (T,) into the flattened batch, and the mask over their one row."""

    shape: tuple[int, int]
    index: Tensor
    mask: BoundMask

    def run(self, compute: Callable[[Tensor, BoundMask], Tensor], x: Tensor) -> Tensor:
        """``compute`` on the real tokens, (1, T, D) to the same; (B, N, D) with zeros in the padding comes back."""
        out = compute(x.flatten(0, 1).index_select(0, self.index).unsqueeze(0), self.mask).squeeze(0)
        whole = out.new_zeros(self.shape[0] * self.shape[1], out.shape[-1])
        return whole.index_copy(0, self.index, out).unflatten(0, self.shape)


def packed(x: Tensor, mask: BoundMask, heads: int) -> Packed | None:
    """How to pack ``x`` (B, N, D) under this mask; None where that is impossible, or not worth while.

    It is possible where the mask is ``padding(..., mask_queries=True)`` and the rest depends on distances alone,
    which packing keeps.
    """
    if torch.compiler.is_compiling() or FULL * x.shape[1] < SHORT:  # a traced length stays free; too short to pack
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
        if not SHORT * B <= real <= FULL * B * N:
            return None
        rules = [own.mask for _, own in mask.head_groups() or [(slice(None), mask)]]
        if any(own.stride > 1 and None in own.band for own in rules):
            return None  # its keys are reached by steps: in one long row, those of the other items are too
        index = torch.cat([torch.arange(b * N + span.start, b * N + span.stop) for b, span in enumerate(spans)])
        row = documents(torch.repeat_interleave(torch.arange(B), lengths))
        for other in factors:
            row = row if other is rule else other & row
        record(partial(_path, real / (B * N)))
        return Packed((B, N), index, row.bind(real, shape=(1, heads)))
    return None


def _path(share: float) -> Dispatch:
    return Dispatch("packed", f"{share:.0%} of the tokens are real; the others are left out before they are projected")
