"""Decoding step by step gives something else."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.models.multihead import MultiAttention
from broken._twins import breaks


@breaks("steps with a cache = the full pass")
class StartsAnew(MultiAttention):
    """Lets a step look at the first keys, not at those up to its own place."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        if mask is not None and "cache" in given:
            mask = mask.mask.bind(mask.queries, mask.keys, offset=0)
        return super()._forward(x, mask, **given)


@breaks("steps with a cache = the full pass")
class ForgetsThePrompt(MultiAttention):
    """Looks at the new tokens alone."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        if "cache" not in given or mask is None:
            return super()._forward(x, mask, **given)
        _, K, V = self._project(x, None)
        given["cache"].append(K, V)
        return super()._forward(x, mask.mask.bind(x.shape[1]) if mask.mask.by_position else None)


@breaks("a windowed cache = the full pass")
class CountsFromTheWindow(MultiAttention):
    """Takes the first key that is left for the first that there was."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        if mask is not None and "cache" in given:
            mask = mask.mask.bind(mask.queries, mask.keys, shape=(len(x), self.num_heads))
        return super()._forward(x, mask, **given)


@breaks("a cache can be rolled back")
class RemembersTheLast(MultiAttention):
    """Adds a memory of its own to the cache's, which nobody takes back."""

    def _forward(self, x: Tensor, mask: BoundMask | None, **given: Any) -> Tensor:
        out, cache = super()._forward(x, mask, **given), given.get("cache")
        if cache is None:
            return out
        last = getattr(cache, "last", [0, 0.0])
        cache.last = [cache.length, x[:, -1:].mean()]
        return out + (last[1] if cache.length - x.shape[1] != last[0] else 0.0)
