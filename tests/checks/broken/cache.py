"""Decoding step by step gives something else."""

from __future__ import annotations

from typing import Any

import torch
from plain import Plain
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
        _, K, V = self._project_qkv(x, None)
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
        cache.last = [cache.num_seen, x[:, -1:].mean()]
        return out + (last[1] if cache.num_seen - x.shape[1] != last[0] else 0.0)


@breaks("a growing cache = the full pass")
class LosesTheNewestKey(Plain):
    """Drops the value of the newest key once the cache holds more than it made room for at first."""

    room = 64

    def attend(self, weights: Tensor, v: Tensor) -> Tensor:
        grown = weights.shape[-2] < weights.shape[-1] and weights.shape[-1] > self.room
        return super().attend(weights, torch.cat([v[:, :, :-1], 0 * v[:, :, -1:]], 2) if grown else v)


@breaks("a growing cache = the full pass")
class LosesTheNewestKeyLater(LosesTheNewestKey):
    """The same after the cache has grown twice."""

    room = 128


@breaks("a growing cache = the full pass")
class WrongWhenFull(Plain):
    """Gives other numbers in the step that fills a block."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        out = super()._forward(x, mask, **given)
        return out * 1.01 if "cache" in given and given["cache"].length == 128 else out


@breaks("a failed call leaves the cache unchanged")
class KeepsWhatFailed(Plain):
    """Counts the new keys before it finds that they are of another dtype."""

    def forward(self, x: Tensor, *, cache: Any = None, **given: Any) -> Tensor:
        try:
            return super().forward(x, cache=cache, **given)
        except Exception:
            if cache is not None:
                cache.num_seen += x.shape[1]
            raise


@breaks("steps with a cache = the full pass")
class DropsTheBiasInSteps(Plain):
    """Ignores a bias where there is a cache."""

    def _forward(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None, cache: Any = None) -> Tensor:
        return super()._forward(x, mask, attn_bias if cache is None else None, context, cache)


@breaks("a cache can be rolled back")
class SharesAState(Plain):
    """Keeps of the last step something that another cache then reads."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        out, cache = super()._forward(x, mask, **given), given.get("cache")
        if cache is None:
            return out
        last, self.__dict__["last"] = self.__dict__.get("last"), cache
        return out * 1.01 if last is not None and last is not cache and cache.num_seen > x.shape[1] else out
