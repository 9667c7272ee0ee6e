"""What a token must not hear of, it does not hear of: the future, the padding, the masked, the rest of the batch.

Each is tried by the gradient and by replacing what is forbidden with loud noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attnlab.checks.probes import SHOUT, attempt, difference, gradient, hearing, leaks, said, worst, worst_way
from attnlab.checks.registry import Measure, promise
from attnlab.checks.subject import SEED, N, Subject
from attnlab.masks import Mask, padding

NOTHING = 1e-9
"""What still counts as nothing: an exact zero for most, rounding for those that mix by a transform."""

LENGTHS = (N, 67, 263)
"""Beyond the block sizes that fast paths cut at (64, 256), and a multiple of none."""


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
    """How much of a later token reaches an earlier output, at several lengths."""
    layer = subject.layer(causal=True)

    def measured() -> Iterator[tuple[float, str]]:
        for length in LENGTHS:
            x = subject.tokens(length=length)
            forbidden = ~subject.permitted(True, None, x)
            for value, where in leaks(lambda x: subject(layer, x), x, forbidden, _rows(length)):
                yield value, f"{where}, of {length} tokens"

    return worst(measured(), NOTHING)


@promise("causal hears no future under a mask", needs=("causal", "padding"))
def causal_with_masks(subject: Subject) -> Measure:
    """The same with every kind of mask: neither drops the other."""
    return _through(subject, subject.masks(causality=True), causal=True)


@promise("masked keys are never heard", needs=("mask",))
def forbidden_keys(subject: Subject) -> Measure:
    """How much of a token reaches an output that may not look at it."""
    return _through(subject, subject.masks())


@promise("padding is never heard", needs=("padding",))
def padding_content(subject: Subject) -> Measure:
    """How much of what stands in the padding, right or left, reaches the output of a real token."""
    return _through(subject, subject.paddings())


@promise("padding is as if absent", needs=("padding",))
def padding_length(subject: Subject) -> Measure:
    """The difference between a sequence padded on the right and the same without its padding."""
    x = subject.tokens()

    def measured(causality: bool, length: int) -> float:
        layer = subject.build(causality)
        lengths = torch.tensor([N, length], device=x.device)
        return difference(subject(layer, x, padding(lengths))[1:, :length], subject(layer, x[1:, :length]))

    return worst(
        (
            (measured(causality, length), f"{length} tokens padded to {N} ({said(causality, None)})")
            for causality in subject.causal_choices
            for length in (1, 4, N - 1)
        ),
        max(NOTHING, subject.exact),
    )


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


def _through(subject: Subject, masks: list[Mask], *, causal: bool = False) -> Measure:
    """How much leaks through these masks, joined with causal where that is asked for."""
    x = subject.tokens()
    layer = subject.layer(causal=True) if causal else subject.layer()

    def asked(causality: bool, mask: Mask | None) -> list[tuple[float, str]]:
        forbidden = ~subject.permitted(causality, mask, x)
        return list(leaks(lambda x: subject(layer, x, mask), x, forbidden, range(N)))

    def measured() -> Iterator[tuple[float, str]]:
        for mask in masks:
            for value, where in attempt(asked, causal, mask):
                yield value, f"{where} ({said(causal, mask)})"

    return worst(measured(), NOTHING)


def _rows(length: int) -> list[int]:
    """All outputs of a short sequence; of a long one those where blocks begin and end."""
    if length <= N:
        return list(range(length))
    return sorted({0, 1, 31, 62, 63, 64, 65, 127, 128, 191, 192, 255, 256, length - 2} & set(range(length)))
