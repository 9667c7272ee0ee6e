"""Errors in incremental decoding with a cache."""

from __future__ import annotations

from typing import Any

import torch
from plain import Plain
from torch import Tensor

from faulty._registry import fails


@fails("cache_matches_full_pass")
class AlignsTheMaskAtTheStart(Plain):
    """A step attends to the first keys in place of the keys up to its own position."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        if mask is not None and mask.queries < mask.keys and mask.mask.by_position:
            mask = mask.mask.bind(mask.queries, mask.keys, offset=0)
        return super().normalize(scores, mask)


@fails("cache_matches_full_pass")
class ForgetsThePrompt(Plain):
    """A step attends to its own tokens only."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        weights = super().normalize(scores, mask)
        queries, keys = scores.shape[-2:]
        return weights * (torch.arange(keys, device=scores.device) >= keys - queries)


@fails("cache_matches_full_pass")
class DropsTheBiasWithCache(Plain):
    """Ignores a bias if there is a cache."""

    def _forward(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None, cache: Any = None) -> Tensor:
        return super()._forward(x, mask, attn_bias if cache is None else None, context, cache)


@fails("windowed_cache_matches_full_pass")
class CountsFromTheWindow(Plain):
    """Takes the first cached key for the first token of the sequence."""

    def _forward(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None, cache: Any = None) -> Tensor:
        if mask is not None and cache is not None:
            mask = mask.mask.bind(mask.queries, mask.keys, shape=(len(x), self.num_heads))
        return super()._forward(x, mask, attn_bias, context, cache)


@fails("cache_crop_and_reorder")
class StoresTheLastTokenApart(Plain):
    """Adds a value of its own to the cache, which ``crop`` does not remove."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        if cache is None:
            return out
        position, value = getattr(cache, "last", (0, 0.0))
        cache.last = cache.num_seen, x[:, -1:].mean()
        return out + (value if cache.num_seen - x.shape[1] != position else 0.0)


@fails("cache_crop_and_reorder")
class SharesAStateBetweenCaches(Plain):
    """Changes the output after a call with another cache."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        if cache is None:
            return out
        last, self.__dict__["last"] = self.__dict__.get("last"), cache
        return out * 1.01 if last is not None and last is not cache and cache.num_seen > x.shape[1] else out


@fails("growing_cache_matches_full_pass")
class LosesTheNewestKey(Plain):
    """Loses the newest value after the cache has grown."""

    capacity = 64

    def attend(self, weights: Tensor, v: Tensor) -> Tensor:
        has_grown = weights.shape[-2] < weights.shape[-1] and weights.shape[-1] > self.capacity
        return super().attend(weights, torch.cat([v[:, :, :-1], 0 * v[:, :, -1:]], 2) if has_grown else v)


@fails("growing_cache_matches_full_pass")
class LosesTheNewestKeyLater(LosesTheNewestKey):
    """The same after the cache has grown twice."""

    capacity = 128


@fails("growing_cache_matches_full_pass")
class WrongWhenFull(Plain):
    """Gives another output in the step that fills a block."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out * 1.01 if cache is not None and cache.num_seen == 128 else out


@fails("failed_call_keeps_cache")
class CountsFailedCalls(Plain):
    """Counts the tokens of a call that raises."""

    def forward(self, x: Tensor, *, cache: Any = None, **options: Any) -> Tensor:
        try:
            return super().forward(x, cache=cache, **options)
        except Exception:
            if cache is not None:
                cache.num_seen += x.shape[1]
            raise
