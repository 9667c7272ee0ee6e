"""Errors in incremental decoding with a cache."""

from __future__ import annotations

from typing import Any

import torch
from plain import Plain, fails
from torch import Tensor


@fails("cache_matches_full_pass", replaces="normalize")
def aligns_the_mask_at_the_start(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """A step attends to the first keys in place of the keys up to its own position."""
    if mask is not None and mask.queries < mask.keys and mask.mask.by_position:
        mask = mask.mask.bind(mask.queries, mask.keys, offset=0)
    return Plain.normalize(self, scores, mask)


@fails("cache_matches_full_pass", replaces="normalize")
def forgets_the_prompt(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """A step attends to its own tokens only."""
    weights = Plain.normalize(self, scores, mask)
    queries, keys = scores.shape[-2:]
    return weights * (torch.arange(keys, device=scores.device) >= keys - queries)


@fails("cache_matches_full_pass", replaces="_forward")
def drops_the_bias_with_cache(self: Plain, x: Tensor, mask: Any, *, cache: Any = None, **options: Any) -> Tensor:
    return Plain._forward(self, x, mask, cache=cache, **({} if cache else options))


@fails("windowed_cache_matches_full_pass", replaces="_forward")
def counts_from_the_window(self: Plain, x: Tensor, mask: Any, *, cache: Any = None, **options: Any) -> Tensor:
    """Takes the first cached key for the first token of the sequence."""
    if mask is not None and cache is not None:
        mask = mask.mask.bind(mask.queries, mask.keys, shape=(len(x), self.num_heads))
    return Plain._forward(self, x, mask, cache=cache, **options)


@fails("cache_crop_and_reorder", replaces="after")
def stores_the_last_token_apart(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    """Adds a value of its own to the cache, which ``crop`` does not remove."""
    if cache is None:
        return out
    position, value = getattr(cache, "last", (0, 0.0))
    cache.last = cache.num_seen, x[:, -1:].mean()
    return out + (value if cache.num_seen - x.shape[1] != position else 0.0)


@fails("cache_crop_and_reorder", replaces="after")
def shares_a_state_between_caches(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    """Changes the output after a call with another cache."""
    if cache is None:
        return out
    last, self.__dict__["last"] = self.__dict__.get("last"), cache
    return out * 1.01 if last is not None and last is not cache and cache.num_seen > x.shape[1] else out


@fails("growing_cache_matches_full_pass", replaces="attend")
def loses_the_newest_key(self: Plain, weights: Tensor, v: Tensor, capacity: int = 64) -> Tensor:
    """Loses the newest value after the cache has grown."""
    has_grown = weights.shape[-2] < weights.shape[-1] and weights.shape[-1] > capacity
    return Plain.attend(self, weights, torch.cat([v[:, :, :-1], 0 * v[:, :, -1:]], 2) if has_grown else v)


@fails("growing_cache_matches_full_pass", replaces="attend")
def loses_the_newest_key_later(self: Plain, weights: Tensor, v: Tensor) -> Tensor:
    """The same after the cache has grown twice."""
    return loses_the_newest_key(self, weights, v, capacity=128)


@fails("growing_cache_matches_full_pass", replaces="after")
def wrong_when_full(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out * 1.01 if cache is not None and cache.num_seen == 128 else out


@fails("failed_call_keeps_cache", replaces="forward")
def counts_failed_calls(self: Plain, x: Tensor, *, cache: Any = None, **options: Any) -> Tensor:
    try:
        return Plain.forward(self, x, cache=cache, **options)
    except Exception:
        if cache is not None:
            cache.num_seen += x.shape[1]
        raise
