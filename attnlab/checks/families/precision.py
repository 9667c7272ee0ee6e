"""Low precision is as exact as its digits, at any length: what is summed along the length is summed in float32."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from attnlab.checks.layer import N, Subject
from attnlab.checks.probes import gradient, worst
from attnlab.checks.registry import Measure, promise

LONG = 1024

LENGTHS = {
    "float32": (N, 64, 257),
    "bfloat16": (N, 64, LONG),
    "float16": (N, 64, 257),
    "bfloat16 autocast": (N, 64, LONG),
}
"""How it is computed, and at which lengths."""

ROUNDOFFS = 28
"""How large the error may be, in unit roundoffs of the dtype; 3 to 25 were measured."""

GROWTH = 2.0
"""How much larger it may be at the longest length than at 64 tokens."""

Errors = dict[tuple[str, int], float]

_measured: WeakKeyDictionary[Subject, Errors] = WeakKeyDictionary()


@promise("low precision matches float64")
def low_precision(subject: Subject) -> Measure:
    """The error of outputs and gradients in float32, float16 and bfloat16 at up to 1,024 tokens, in unit roundoffs.

    The root mean square of the difference from float64 with the same rounded parameters, over that of the output.
    """
    found = _errors(subject)
    return worst(((error, f"{how}, {length} tokens") for (how, length), error in found.items()), ROUNDOFFS)


@promise("low-precision error does not grow with length")
def growth(subject: Subject) -> Measure:
    """How many times larger the same error is at the longest length than at 64 tokens."""
    found = _errors(subject)

    def measured() -> Iterator[tuple[float, str]]:
        for how, lengths in LENGTHS.items():
            short, long = found[how, lengths[1]], found[how, lengths[-1]]
            yield long / max(short, 1.0), f"{how}, from {lengths[1]} to {lengths[-1]} tokens"

    return worst(measured(), GROWTH)


def _errors(subject: Subject) -> Errors:
    """The larger of the errors of outputs and of gradients; under autocast of outputs alone."""
    if subject not in _measured:
        _measured[subject] = {
            (how, length): _error(subject, how, length) for how, lengths in LENGTHS.items() for length in lengths
        }
    return _measured[subject]


def _error(subject: Subject, how: str, length: int) -> float:
    name, _, autocast = how.partition(" ")
    dtype: torch.dtype = getattr(torch, name)
    layer = subject.build(subject.causal_choices[-1], dtype=torch.float32 if autocast else dtype)
    x = subject.tokens(1, length).to(torch.float32 if autocast else dtype)
    precise, exact_x = deepcopy(layer).double(), x.double().requires_grad_()
    expected = subject(precise, exact_x)
    unit = torch.finfo(dtype).eps / 2
    if autocast:
        with torch.no_grad(), torch.autocast(subject.device.type, dtype=dtype):
            return _relative(subject(layer, x), expected) / unit
    out = subject(layer, x.requires_grad_())
    direction = subject.random(*out.shape, seed=3)
    slopes = [gradient((y.double() * direction).sum(), leaf) for y, leaf in ((out, x), (expected, exact_x))]
    return max(_relative(out, expected), _relative(*slopes)) / unit


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).square().mean() / expected.square().mean()).sqrt().item()
