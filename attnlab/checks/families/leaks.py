"""What a token must not hear of, it does not hear of: the future, the padding, the masked, the rest of the batch.

Each is tried by the gradient and by replacing what is forbidden with loud noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.checks.layer import SEED, B, M, N, Subject, as_matrix
from attnlab.checks.probes import (
    SHOUT,
    attempt,
    batched_leaks,
    difference,
    gradient,
    gradients,
    hearing,
    leaks,
    said,
    seeded,
    worst,
    worst_way,
)
from attnlab.checks.registry import Measure, promise
from attnlab.masks import Mask, causal, from_tensor, padding, sliding_window

NOTHING = 1e-9
"""What still counts as nothing: an exact zero for most, rounding for those that mix by a transform."""

LENGTHS = (N, 64, 67, 128, 263)
"""Multiples of the block sizes that fast paths cut at (64, 128), and lengths beyond them (64, 256) that are none."""

BLOCK = 64

BATCH = 11
"""Larger than the batches that a fast path may treat in another way."""


@promise("tokens reach each other")
def tokens_reach_each_other(subject: Subject) -> Measure:
    """1 where there is a way to ask in which no output hears of another token: the deaf would keep what follows."""
    x = subject.tokens()

    def measured(causality: bool, mask: Mask | None) -> float:
        layer = subject.build(causality)
        heard = hearing(lambda x: subject(layer, x, mask), x)
        return 0.0 if any(bool(row.any()) for row in heard) else 1.0

    return worst_way(subject, measured, limit=0)


@promise("causal hears no future", needs=("causal",))
def causal_alone(subject: Subject) -> Measure:
    """How much of a later token reaches an earlier output, at several lengths, in eval and in training."""

    def measured() -> Iterator[tuple[float, str]]:
        x = subject.tokens()
        forbidden = ~subject.permitted(True, None, x)
        layer = subject.layer(causal=True)
        for value, where in leaks(lambda x: subject(layer, x), x, forbidden, range(N)):
            yield value, f"{where}, of {N} tokens"
        for length in LENGTHS:
            x = subject.tokens(1, length)
            forbidden = ~subject.permitted(True, None, x)
            for mode, layer in subject.modes(True):
                if mode == "eval" or length in (N, 64, 128):
                    run = seeded(lambda x, layer=layer: subject(layer, x))  # type: ignore[misc]
                    value, where = batched_leaks(run, x, forbidden, _rows(length))
                    yield value, f"{where}, of {length} tokens in {mode}"

    return worst(measured(), NOTHING)


@promise("a causal prefix is computed alone", needs=("causal",))
def causal_prefix(subject: Subject) -> Measure:
    """The difference between the first outputs of a sequence and those of its first tokens alone."""

    def measured() -> Iterator[tuple[float, str]]:
        layer = subject.layer(causal=True)
        for length in (N, 67, 131, 521):
            x = subject.tokens(B if length == N else 1, length)
            whole = subject(layer, x)
            for first in (length // 2, length // BLOCK * BLOCK, length - 1):
                alone = subject(layer, x[:, :first].contiguous())
                yield difference(alone, whole[:, :first]), f"the first {first} of {length} tokens"

    return worst(measured(), max(NOTHING, subject.exact))


@promise("causal hears no future under a mask", needs=("causal", "padding"))
def causal_with_masks(subject: Subject) -> Measure:
    """The same with every kind of mask: neither drops the other."""
    return _through(subject, subject.masks, causal=True)


@promise("masked keys are never heard", needs=("arbitrary_mask",))
def forbidden_keys(subject: Subject) -> Measure:
    """How much of a token reaches an output that may not look at it."""
    return _through(subject, subject.masks)


@promise("padding is never heard", needs=("padding",))
def padding_content(subject: Subject) -> Measure:
    """How much of what stands in the padding, right or left, reaches the output of a real token."""
    return _through(subject, subject.paddings)


@promise("padding is as if absent", needs=("padding",))
def padding_length(subject: Subject) -> Measure:
    """The difference between a sequence padded on the right and the same without its padding."""

    def measured(causality: bool, length: int, total: int) -> float:
        layer, x = subject.build(causality), subject.tokens(length=total).requires_grad_()
        lengths = torch.tensor([total, length], device=x.device)
        outs = subject(layer, x, padding(lengths))[1:, :length], subject(layer, x[1:, :length])
        slopes = [gradient(out.square().sum(), x) for out in outs]
        return max(difference(*outs), difference(*slopes))

    return worst(
        (
            (measured(causality, length, total), f"{length} tokens padded to {total} ({said(causality, None)})")
            for causality in subject.causal_choices
            for length, total in ((1, N), (4, N), (N - 1, N), (BLOCK, 67), (61, BLOCK), (67, 128), (256, 263))
        ),
        max(NOTHING, subject.exact),
    )


@promise("NaN in padding reaches nothing", needs=("contract", "padding"))
def nan_in_padding(subject: Subject) -> Measure:
    """The difference that NaN and infinity in padding make to real rows, to their gradients and to cached steps."""
    lengths = torch.tensor([N, N - 3], device=subject.device)
    position = torch.arange(N, device=subject.device)

    def measured() -> Iterator[tuple[float, str]]:
        for side in ("right", "left"):
            start, stop = (0, lengths) if side == "right" else (N - lengths, N + 0 * lengths)
            real = (position >= torch.as_tensor(start).unsqueeze(-1)) & (position < stop.unsqueeze(-1))
            for fill in (torch.nan, torch.inf):
                clean = subject.tokens().masked_fill(~real.unsqueeze(-1), 0.0)
                for causality, queries, train in _settings(subject):
                    mask: Mask = padding(lengths, side=side, max_length=N, mask_queries=queries)
                    for joined in (mask, mask & sliding_window(3), causal() & mask):
                        layer = subject.build(causality, train=train)
                        outs = [
                            _rows_and_gradients(subject, layer, x, joined, real)
                            for x in (clean, clean.masked_fill(~real.unsqueeze(-1), fill))
                        ]
                        yield worst_of(*outs), f"{fill} in padding on the {side} ({said(causality, joined)})"
                if "context" in subject.claims:
                    yield _in_context(subject, clean, real, side, lengths, fill), f"{fill} in the padding of a context"

    return worst(measured(), subject.exact)


def _settings(subject: Subject) -> Iterator[tuple[bool, bool, bool]]:
    """Causal or not; whether padded rows are dropped; in training or not."""
    for causality in subject.causal_choices:
        for queries in (False, True):
            for train in (False, True):
                yield causality, queries, train


def worst_of(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference between two lists of tensors, NaN where there is one."""
    differences = [difference(ours, true) for ours, true in zip(found, expected, strict=True)]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _rows_and_gradients(
    subject: Subject, layer: nn.Module, x: Tensor, mask: Mask, real: Tensor, **extra: Tensor
) -> list[Tensor]:
    """The outputs of real tokens, and the gradients of their sum of squares in every real token and parameter."""
    leaves = [x.detach().requires_grad_(), *(p for p in layer.parameters() if p.requires_grad)]
    rows = subject(layer, leaves[0], mask, **extra)[real]
    found = gradients(rows.square().sum(), leaves)
    own, *others = (torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True))
    return [rows.detach(), own, *others]


def _in_context(subject: Subject, clean: Tensor, real: Tensor, side: str, lengths: Tensor, fill: float) -> float:
    """The same for the padding of a context."""
    layer, x = subject.build(False), subject.tokens(length=M)
    mask = padding(lengths, side=side, max_length=N)
    every = torch.ones(len(x), M, dtype=torch.bool, device=x.device)
    outs = [
        _rows_and_gradients(subject, layer, x, mask, every, context=context)
        for context in (clean, clean.masked_fill(~real.unsqueeze(-1), fill))
    ]
    return worst_of(*outs)


@promise("other batch items are never heard")
def other_items(subject: Subject) -> Measure:
    """How much of one item of a batch reaches another, in training and in eval."""
    x = subject.tokens()
    loud = torch.cat([x[:1], SHOUT * subject.random(1, N, subject.embed_dim, seed=1)])

    def measured(train: bool, mask: Mask | None) -> float:
        layer = subject.layer(train=train)

        def run(x: Tensor) -> Tensor:
            torch.manual_seed(SEED)  # the same dropout each time
            return subject(layer, x, mask)

        tokens = x.clone().requires_grad_()
        slope = gradient(run(tokens)[0].square().sum(), tokens)
        with torch.no_grad():
            return max(slope[1].abs().max().item(), difference(run(loud)[0], run(x)[0]))

    return worst(
        (
            (measured(train, mask), f"one item hears another in {'training' if train else 'eval'}")
            for train in (False, True)
            for mask in (None, *subject.masks())
        ),
        NOTHING,
    )


@promise("items of a large batch are computed alone")
def large_batch(subject: Subject) -> Measure:
    """The difference between an item of a batch of 11, with a mask per item, and the same item alone."""

    def measured() -> Iterator[tuple[float, str]]:
        for length in (N, BLOCK):
            x = subject.tokens(BATCH, length)
            counts = 1 + 5 * torch.arange(BATCH, device=x.device) % length
            kinds = subject.masks if length == N else subject.paddings
            for causality in subject.causal_choices:
                for train in (False, True) if length == N else (False,):
                    layer = subject.build(causality, train=train)
                    for mask in (None, *kinds(BATCH, length, causality=causality, counts=counts)):
                        yield (
                            attempt(lambda _, mask: _items(subject, layer, x, mask), causality, mask),  # noqa: B023
                            f"an item of {BATCH} of {length} tokens ({said(causality, mask)})",
                        )
                    for extra in subject.extras(causality, BATCH, length)[1:]:
                        given = " and ".join(extra)
                        yield _items(subject, layer, x, None, **extra), f"an item of {BATCH} with {given}"

    return worst(measured(), max(NOTHING, subject.exact))


def _items(subject: Subject, layer: nn.Module, x: Tensor, mask: Mask | None, **extra: Tensor) -> float:
    """The largest difference between some items of a batch and the same alone, outputs and gradients."""
    x = x.detach().requires_grad_()
    matrix = None if mask is None else as_matrix(mask, x, x)
    together = subject(layer, x, mask, **extra)
    slope = gradient(together.square().sum(), x)
    found = [0.0]
    for i in (0, 3, 8, len(x) - 1):
        item = x[i : i + 1].detach().requires_grad_()
        own = {name: value[i : i + 1] for name, value in extra.items()}
        alone = subject(layer, item, None if matrix is None else from_tensor(matrix[i : i + 1].contiguous()), **own)
        found.append(difference(together[i : i + 1], alone))
        found.append(difference(slope[i], gradient(alone.square().sum(), item)[0]))
    return math.nan if any(map(math.isnan, found)) else max(found)


def _through(subject: Subject, kinds: Callable[..., list[Mask]], *, causal: bool = False) -> Measure:
    """How much leaks through these masks, joined with causal where that is asked for, in eval and in training."""
    x = subject.tokens()
    options: dict[str, Any] = {"causal": True} if causal else {}
    dropped: dict[str, Any] = (
        {"dropout": subject.dropout} if "dropout" in subject.claims and subject.can_choose("dropout") else {}
    )
    layer = subject.layer(**options)

    def asked(causality: bool, mask: Mask | None) -> list[tuple[float, str]]:
        forbidden = ~subject.permitted(causality, mask, x)
        return list(leaks(lambda x: subject(layer, x, mask), x, forbidden, range(N)))

    def measured() -> Iterator[tuple[float, str]]:
        for mask in kinds(causality=causal):
            for value, where in attempt(asked, causal, mask):
                yield value, f"{where} ({said(causal, mask)})"
        trained = [subject.layer(train=True, **options)]
        if dropped:
            trained.append(subject.layer(train=True, **options, **dropped))
        for length, layers in ((N, trained), (BLOCK, [layer, trained[-1]])):
            row = subject.tokens(1, length)
            counts = torch.tensor([length - 3], device=x.device)
            for mask in kinds(1, length, causality=causal, counts=counts):
                for asked_layer in layers:

                    def leak(
                        causality: bool, mask: Mask | None, layer: nn.Module = asked_layer, row: Tensor = row
                    ) -> tuple[float, str]:
                        forbidden = ~subject.permitted(causality, mask, row)
                        run = seeded(lambda x: subject(layer, x, mask))
                        return batched_leaks(run, row, forbidden, _rows(length))  # noqa: B023

                    value, where = attempt(leak, causal, mask)
                    mode = "training" if asked_layer.training else "eval"
                    yield value, f"{where}, of {length} tokens in {mode} ({said(causal, mask)})"

    return worst(measured(), NOTHING)


def _rows(length: int) -> list[int]:
    """All outputs of a short sequence; of a long one those where blocks begin and end."""
    if length <= N:
        return list(range(length))
    rows = {0, 31, 32, 62} if length == BLOCK else {63, 64, 127, 255, length - 2}
    return sorted(rows & set(range(length)))
