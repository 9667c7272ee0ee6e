"""Sequences in one row know of each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.masks import BoundMask, causal
from attnlab.models.multihead import MultiAttention
from broken._twins import breaks


@breaks("packed sequences are each alone")
class GluesDocuments(MultiAttention):
    """Takes packed sequences for one."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        if mask is not None and any(rule.segments(x.shape[1]) for rule in mask.mask.conjuncts):
            mask = causal().bind(x.shape[1]) if self.causal else None
        return super()._forward(x, mask, **given)


@breaks("packed padding changes nothing")
class PacksWithPlaces(MultiAttention):
    """Adds to every token its place, and lets itself be packed all the same."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        start = given["cache"].length if "cache" in given else 0
        place = torch.arange(start, start + x.shape[1], device=x.device)[:, None]
        return super()._forward(x + 0.1 * place, mask, **given)
