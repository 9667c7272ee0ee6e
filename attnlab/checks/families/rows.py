"""A token that may look at nothing says nothing: zeros, and a gradient that is a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from attnlab.checks.layer import B, N, Subject
from attnlab.checks.probes import attempt, not_finite, said, worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import Mask, causal, from_tensor, padding


@promise("empty rows give zeros", needs=("padding",))
def zeros(subject: Subject) -> Measure:
    """The largest number in the output of a token that may look at nothing, in eval and in training."""

    def measured(causality: bool, mask: Mask | None) -> float:
        x = subject.tokens()
        empty = ~subject.permitted(causality, mask, x).any(-1)
        outs = [subject(subject.build(causality, train=train), x, mask) for train in (False, True)]
        return max(out[empty].abs().max().item() for out in outs)

    return worst(_over(subject, measured), limit=0)


@promise("empty rows give finite gradients", needs=("padding",))
def finite_gradients(subject: Subject) -> Measure:
    """How many gradients, of tokens and parameters, are NaN or infinite, in float64 and float32."""

    def measured(causality: bool, mask: Mask | None) -> float:
        wrong = 0
        for dtype in (torch.float64, torch.float32):
            layer, x = subject.build(causality, dtype=dtype), subject.tokens(dtype=dtype).requires_grad_()
            subject(layer, x, mask).square().sum().backward()
            wrong += not_finite(x.grad, *(p.grad for p in layer.parameters()))
        return wrong

    return worst(_over(subject, measured), limit=0)


def _over(subject: Subject, measure: Callable[[bool, Mask | None], float]) -> Iterator[tuple[float, str]]:
    for causality in subject.causal_choices:
        for mask in _masks(subject, causality):
            yield attempt(measure, causality, mask), said(causality, mask)


def _masks(subject: Subject, causality: bool) -> list[Mask]:
    """Masks with an item, with some rows and with every row that may look at nothing."""
    device = subject.device
    found = [padding(torch.tensor(lengths, device=device)) for lengths in ([N, 0], [0, 0])]
    behind = padding(torch.tensor([N, 3], device=device), side="left", max_length=N)
    found += [behind] if causality else []
    if "arbitrary_mask" in subject.claims:
        some = subject.random(B, N, N) > 0
        some[0, 2:4] = False
        some[1, 0] = False
        none = torch.zeros(N, N, dtype=torch.bool, device=device)
        found += [from_tensor(some), from_tensor(none)]
        found += [behind & causal()]
    return found
