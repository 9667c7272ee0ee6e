"""Incremental decoding with a cache matches the full pass.

Axes: B batch, N length, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attnlab.checks.layer_under_test import B, LayerUnderTest, N
from attnlab.checks.probes import describe, difference
from attnlab.checks.registry import Values, check
from attnlab.masks import Mask, causal, padding, sliding_window
from attnlab.nn.cache import INITIAL_LENGTH, DecodingCache, KVCache, RecurrentState
from attnlab.nn.mixer import SequenceMixer

TOLERANCE = 1e-12
"""In float64."""

FLOAT32_TOLERANCE = 1e-4

SPLITS = ((1,) * N, (N - 2, 1, 1), (3, N - 3), (2, 0, N - 3, 1))
LONG = 151
BATCH = 11
GROWING = (3, INITIAL_LENGTH - 4, 1, 1, 1, INITIAL_LENGTH - 2, 1, 1, 2 * INITIAL_LENGTH - 2, 1, 1, 1)
"""Pieces that end before, at and after multiples of the initial capacity of a cache."""

WINDOW = 5


@check("cache_matches_full_pass", needs=("contract", "cache"), limit=TOLERANCE)
@torch.no_grad()
def steps(case: LayerUnderTest) -> Values:
    """The difference between decoding a sequence in pieces and the full pass, for every mask and at 151 tokens."""
    for length, splits in ((N, SPLITS), (LONG, ((LONG - 70, 1, 68, 1),))):
        x = case.tokens(length=length)
        layer, masks = _causal_layer(case, x)
        for mask in masks:
            full = case(layer, x, mask)
            for split in splits:
                where = f"in pieces of {split} ({describe(True, mask)})"
                yield difference(_decode(layer, x, mask, split), full), where
        split, mask = splits[-1], masks[0]
        trained = case.build(True, train=True)
        where = f"in pieces of {split}, in training without dropout"
        yield difference(_decode(trained, x, mask, split), case(layer, x, mask)), where
        single, y = case.build(True, dtype=torch.float32), x.float()
        error = difference(_decode(single, y, mask, split), case(single, y, mask))
        yield error if not error <= FLOAT32_TOLERANCE else 0.0, f"in pieces of {split}, in float32"
        if "attn_bias" in case.capabilities:
            bias = case.random(B, case.num_heads, length, length, seed=2)
            full = case(layer, x, mask, attn_bias=bias)
            where = f"in pieces of {splits[0]}, with a bias"
            yield difference(_decode(layer, x, mask, splits[0], bias=bias), full), where


@check("growing_cache_matches_full_pass", needs=("contract", "cache"), limit=TOLERANCE)
@torch.no_grad()
def growing(case: LayerUnderTest) -> Values:
    """The difference from the full pass while the cache grows beyond its capacity several times; 2 and 11 items."""
    for batch, split in ((B, GROWING), (BATCH, (INITIAL_LENGTH, 1, 1, INITIAL_LENGTH, 1))):
        x = case.tokens(batch, sum(split))
        layer, masks = _causal_layer(case, x)
        for mask in masks[:2]:
            full, out = case(layer, x, mask), _decode(layer, x, mask, split, layer.make_cache(2 * x.shape[1]))
            position = int((out - full).abs().amax((0, 2)).argmax())
            where = f"token {position} of {x.shape[1]}, {batch} items ({describe(True, mask)})"
            yield difference(out, full), where


@check("failed_call_keeps_cache", needs=("contract", "cache"), limit=TOLERANCE)
@torch.no_grad()
def failed_call(case: LayerUnderTest) -> Values:
    """The difference in later steps after calls that raised; 1 if a call does not raise, or changes the cache."""
    x = case.tokens()
    layer, (mask, *_) = _causal_layer(case, x)
    full, cache = case(layer, x, mask), layer.make_cache(N)
    _step(layer, x[:, :4], mask, cache)
    single, tracked = case.build(True, dtype=torch.float32), x[:, :1].clone().requires_grad_()
    before = _contents(cache)
    failing: dict[str, Callable[[DecodingCache], Tensor]] = {
        "another batch": lambda cache: _step(layer, x[:1, :1], mask, cache),
        "another width": lambda cache: _step(layer, x[:, :1, 1:], mask, cache),
        "another dtype": lambda cache: _step(single, x[:, :1].float(), mask, cache),
        "too many tokens": lambda cache: _step(layer, x, mask, cache),
        "a gradient": lambda cache: torch.enable_grad()(_step)(layer, tracked, mask, cache),
        "a context": lambda cache: layer(x[:, :1], mask=mask, context=x, cache=cache),
    }
    if isinstance(cache, RecurrentState):
        del failing["too many tokens"]  # a state has no capacity
    for name, call in failing.items():
        used = cache.copy()
        try:
            call(used)
        except Exception:
            if _contents(used) != before:
                yield 1.0, f"{name} raises and changes the cache"
                continue
            yield difference(_step(layer, x[:, 4:], mask, used), full[:, 4:]), f"a step after {name} raised"
        else:
            yield 1.0, f"{name} does not raise"


@check("windowed_cache_matches_full_pass", needs=("contract", "cache", "arbitrary_mask"), limit=TOLERANCE)
@torch.no_grad()
def windowed(case: LayerUnderTest) -> Values:
    """The difference from the full pass where the cache discards keys outside of a sliding window."""
    length = 5 * 67
    x = case.tokens(length=length)
    layer, _ = _causal_layer(case, x)
    for other in (None, padding(torch.tensor([9, 40], device=x.device), side="left", max_length=50)):
        mask = causal() & sliding_window(WINDOW) if other is None else causal() & sliding_window(WINDOW) & other
        cache = layer.make_cache(length, window=WINDOW)
        out = _decode(layer, x, mask, (50, 1, 1, 31, *[1] * (length - 83)), cache)
        yield difference(out, case(layer, x, mask)), describe(True, mask)
        yield float(cache.start == 0), "the cache discarded nothing"


@check("cache_crop_and_reorder", needs=("contract", "cache"), limit=TOLERANCE)
@torch.no_grad()
def crop_and_reorder(case: LayerUnderTest) -> Values:
    """The difference from the full pass after ``crop`` and ``reorder``, as in speculative decoding and beam search.

    Also between two sequences that are decoded in turns, each with its own cache.
    """
    for length in (N, INITIAL_LENGTH + N):
        x, other = case.tokens(length=length), case.tokens(length=length, seed=21)
        layer, (mask, *_) = _causal_layer(case, x)
        full, cache, seen = case(layer, x, mask), layer.make_cache(length), length - 4
        _step(layer, x[:, :2], mask, cache)
        _step(layer, x[:, 2:seen], mask, cache)
        before = cache.copy()
        _step(layer, other[:, :3], mask, cache)
        if isinstance(cache, KVCache):
            cache.crop(seen)
        else:
            cache = before  # a recurrent state cannot be cropped; decoding resumes from a copy
        step, where = slice(seen, seen + 2), f"of {length} tokens"
        yield difference(_step(layer, x[:, step], mask, cache), full[:, step]), f"after crop {where}"
        items, rest = torch.tensor([1, 1, 0], device=x.device), slice(seen + 2, length)
        cache.reorder(items)
        out = _step(layer, x[items, rest], mask, cache)
        yield difference(out, full[items, rest]), f"after reorder([1, 1, 0]) {where}"
    sequences = case.tokens(), case.tokens(seed=21)
    layer, (mask, *_) = _causal_layer(case, sequences[0])
    caches = layer.make_cache(N), layer.make_cache(N)
    steps: list[list[Tensor]] = [[], []]
    for i in range(N):
        for outs, x, cache in zip(steps, sequences, caches, strict=True):
            outs.append(_step(layer, x[:, i : i + 1], mask, cache))
    for outs, x in zip(steps, sequences, strict=True):
        yield difference(torch.cat(outs, 1), case(layer, x, mask)), "two caches used in turns"


def _causal_layer(case: LayerUnderTest, x: Tensor) -> tuple[SequenceMixer, list[Mask | None]]:
    """A causal layer and the masks to call it with; they include ``causal`` if the layer has no such option."""
    layer = case.build(True)
    assert isinstance(layer, SequenceMixer)
    base: Mask | None = None if getattr(layer, "causal", False) else causal()
    # A recurrent state continues one sequence per row, so that no segments can be decoded with it.
    kinds = case.masks if layer.cache_type is KVCache else case.paddings
    masks = kinds(len(x), x.shape[1])
    return layer, [base, *(mask if base is None else base & mask for mask in masks)]


def _contents(cache: DecodingCache) -> tuple[int, int, int]:
    return cache.num_seen, getattr(cache, "start", 0), cache.bytes


def _decode(
    layer: nn.Module,
    x: Tensor,
    mask: Mask | None,
    split: Sequence[int],
    cache: DecodingCache | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The outputs for pieces of these lengths, with one cache."""
    outs = []
    if cache is None:
        assert isinstance(layer, SequenceMixer)
        cache = layer.make_cache(x.shape[1])
    for part in x.split(list(split), 1):
        start, stop = cache.num_seen, cache.num_seen + part.shape[1]
        extra = {} if bias is None else {"attn_bias": bias[..., start:stop, :stop]}
        outs.append(_step(layer, part, mask, cache, x.shape[1], **extra))
    return torch.cat(outs, 1)


def _step(
    layer: nn.Module, x: Tensor, mask: Mask | None, cache: DecodingCache, length: int = N, **extra: Tensor
) -> Tensor:
    if mask is not None and not mask.by_position:  # an explicit matrix: pass the rows and columns of this step
        matrix, seen = mask.materialize(length, device=x.device), cache.num_seen + x.shape[1]
        return layer(x, mask=matrix[..., cache.num_seen : seen, :seen], cache=cache, **extra)
    return layer(x, mask=mask, cache=cache, **extra)
