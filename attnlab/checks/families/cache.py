"""Decoding step by step gives what the full pass gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from attnlab.checks.layer import B, N, Subject
from attnlab.checks.probes import difference, said, worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import Mask, causal, padding, sliding_window
from attnlab.nn.cache import INITIAL_LENGTH, DecodingCache, KVCache, RecurrentState

SAME = 1e-12
"""In float64."""

SINGLE = 1e-4
"""In float32."""

SPLITS = ((1,) * N, (N - 2, 1, 1), (3, N - 3), (2, 0, N - 3, 1))
LONG = 151
BATCH = 11
GROWING = (3, INITIAL_LENGTH - 4, 1, 1, 1, INITIAL_LENGTH - 2, 1, 1, 2 * INITIAL_LENGTH - 2, 1, 1, 1)
"""Pieces that end before, at and behind multiples of the tokens that a cache makes room for at first."""
REACH = 5


@promise("steps with a cache = the full pass", needs=("contract", "cache"))
def steps(subject: Subject) -> Measure:
    """The difference between a sequence at once and in several pieces, under every mask and at a longer length."""

    @torch.no_grad()
    def measured() -> Iterator[tuple[float, str]]:
        for length, splits in ((N, SPLITS), (LONG, ((LONG - 70, 1, 68, 1),))):
            x = subject.tokens(length=length)
            layer, masks = _looking_back(subject, x)
            for mask in masks:
                whole = subject(layer, x, mask)
                for split in splits:
                    found = _in_steps(subject, x, mask, split, _new_cache(layer, length))
                    yield difference(found, whole), f"in pieces of {split} ({said(True, mask)})"
            split = splits[-1]
            cache = _new_cache(layer, length)
            trained = subject.build(True, train=True)
            found = torch.cat([_step(trained, part, masks[0], cache, length) for part in x.split(list(split), 1)], 1)
            yield difference(found, subject(layer, x, masks[0])), f"in pieces of {split}, in training without dropout"
            single, y = subject.build(True, dtype=torch.float32), x.float()
            cache = _new_cache(layer, length)
            found = torch.cat([_step(single, part, masks[0], cache, length) for part in y.split(list(split), 1)], 1)
            far = difference(found, subject(single, y, masks[0]))
            yield far if not far <= SINGLE else 0.0, f"in pieces of {split}, in float32"
            if "attn_bias" in subject.claims:
                bias = subject.random(B, subject.num_heads, length, length, seed=2)
                whole = subject(layer, x, masks[0], attn_bias=bias)
                found = _in_steps(subject, x, masks[0], splits[0], _new_cache(layer, length), bias)
                yield difference(found, whole), f"in pieces of {splits[0]}, with a bias"

    return worst(measured(), SAME)


@promise("a growing cache = the full pass", needs=("contract", "cache"))
def growing(subject: Subject) -> Measure:
    """The difference where the memory of a cache is exceeded, and enlarged, several times; with 2 and 11 items."""

    @torch.no_grad()
    def measured() -> Iterator[tuple[float, str]]:
        for batch, split in ((B, GROWING), (BATCH, (INITIAL_LENGTH, 1, 1, INITIAL_LENGTH, 1))):
            x = subject.tokens(batch, sum(split))
            layer, masks = _looking_back(subject, x)
            for mask in masks[:2]:
                cache, whole = _new_cache(layer, 2 * x.shape[1]), subject(layer, x, mask)
                found = torch.cat([_step(layer, part, mask, cache, x.shape[1]) for part in x.split(list(split), 1)], 1)
                late = (found - whole).abs().amax((0, 2)).argmax()
                yield difference(found, whole), f"token {int(late)} of {x.shape[1]}, {batch} items ({said(True, mask)})"

    return worst(measured(), SAME)


@promise("a failed call leaves the cache unchanged", needs=("contract", "cache"))
def failed_call(subject: Subject) -> Measure:
    """The difference in later steps after calls that raised; 1 where one did not raise, or changed what is cached."""

    @torch.no_grad()
    def measured() -> Iterator[tuple[float, str]]:
        x = subject.tokens()
        layer, (mask, *_) = _looking_back(subject, x)
        whole, cache = subject(layer, x, mask), _new_cache(layer, N)
        _step(layer, x[:, :4], mask, cache)
        single, tracked = subject.build(True, dtype=torch.float32), x[:, :1].clone().requires_grad_()
        before = cache.num_seen, cache.start, cache.bytes
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
                if (used.num_seen, used.start, used.bytes) != before:
                    yield 1.0, f"{name} raises and changes the cache"
                    continue
                yield difference(_step(layer, x[:, 4:], mask, used), whole[:, 4:]), f"a step after {name} raised"
            else:
                yield 1.0, f"{name} does not raise"

    return worst(measured(), SAME)


@promise("a windowed cache = the full pass", needs=("contract", "cache", "arbitrary_mask"))
def ring(subject: Subject) -> Measure:
    """The difference where the cache lets go of what the mask's window has passed, over many times its memory."""

    @torch.no_grad()
    def measured() -> Iterator[tuple[float, str]]:
        length = 5 * 67
        x = subject.tokens(length=length)
        layer, _ = _looking_back(subject, x)
        for other in (None, padding(torch.tensor([9, 40], device=x.device), side="left", max_length=50)):
            mask = causal() & sliding_window(REACH) if other is None else causal() & sliding_window(REACH) & other
            cache = _new_cache(layer, length, window=REACH)
            found = _in_steps(subject, x, mask, (50, 1, 1, 31, *[1] * (length - 83)), cache)
            yield difference(found, subject(layer, x, mask)), f"{said(True, mask)}"
            yield float(cache.start == 0), "the cache kept everything"

    return worst(measured(), SAME)


@promise("a cache can be rolled back", needs=("contract", "cache"))
def edited(subject: Subject) -> Measure:
    """The difference after tokens were taken back, and items exchanged, as in speculative decoding and beam search.

    And between two sequences that are decoded in turns, each with a cache.
    """

    @torch.no_grad()
    def measured() -> Iterator[tuple[float, str]]:
        for length in (N, INITIAL_LENGTH + N):
            x, other = subject.tokens(length=length), subject.tokens(length=length, seed=21)
            layer, (mask, *_) = _looking_back(subject, x)
            whole, cache, seen = subject(layer, x, mask), _new_cache(layer, length), length - 4
            _step(layer, x[:, :2], mask, cache)
            _step(layer, x[:, 2:seen], mask, cache)
            before = cache.copy()
            _step(layer, other[:, :3], mask, cache)
            if isinstance(cache, KVCache):
                cache.crop(seen)
            else:
                cache = before  # a state cannot be cropped; decoding resumes from a copy
            step, where = slice(seen, seen + 2), f"of {length} tokens"
            yield difference(_step(layer, x[:, step], mask, cache), whole[:, step]), f"after crop() {where}"
            items, rest = torch.tensor([1, 1, 0], device=x.device), slice(seen + 2, length)
            cache.reorder(items)
            found = _step(layer, x[items, rest], mask, cache)
            yield difference(found, whole[items, rest]), f"after reorder([1, 1, 0]) {where}"
        x, other = subject.tokens(), subject.tokens(seed=21)
        layer, (mask, *_) = _looking_back(subject, x)
        first, second = _new_cache(layer, N), _new_cache(layer, N)
        steps = []
        for i in range(N):
            token = slice(i, i + 1)
            steps.append((_step(layer, x[:, token], mask, first), _step(layer, other[:, token], mask, second)))
        both = (torch.cat(parts, 1) for parts in zip(*steps, strict=True))
        for found, tokens in zip(both, (x, other), strict=True):
            yield difference(found, subject(layer, tokens, mask)), "two caches filled in turns"

    return worst(measured(), SAME)


def _looking_back(subject: Subject, x: Tensor) -> tuple[torch.nn.Module, list[Mask | None]]:
    """A layer that cannot look ahead, and the masks to ask it with."""
    layer = subject.build(True)
    plain: Mask | None = None if getattr(layer, "causal", False) else causal()
    masks = subject.masks(len(x), x.shape[1])
    return layer, [plain, *(mask if plain is None else plain & mask for mask in masks)]


def _in_steps(
    subject: Subject,
    x: Tensor,
    mask: Mask | None,
    split: Sequence[int],
    cache: DecodingCache,
    bias: Tensor | None = None,
) -> Tensor:
    (layer, _), rows = _looking_back(subject, x), []
    for part in x.split(list(split), 1):
        first, seen = cache.num_seen, cache.num_seen + part.shape[1]
        given = {} if bias is None else {"attn_bias": bias[..., first:seen, :seen]}
        rows.append(_step(layer, part, mask, cache, x.shape[1], **given))
    return torch.cat(rows, 1)


def _new_cache(layer: torch.nn.Module, length: int, **options: int) -> DecodingCache:
    """The cache that a layer makes; a `KVCache` for a third-party layer."""
    return getattr(layer, "make_cache", KVCache)(length, **options)


def _step(
    layer: torch.nn.Module, x: Tensor, mask: Mask | None, cache: DecodingCache, total: int = N, **given: Tensor
) -> Tensor:
    if mask is not None and not mask.by_position:  # a given matrix: the rows and columns that the step is about
        matrix, seen = mask.materialize(total, device=x.device), cache.num_seen + x.shape[1]
        return layer(x, mask=matrix[..., cache.num_seen : seen, :seen], cache=cache, **given)
    return layer(x, mask=mask, cache=cache, **given)
