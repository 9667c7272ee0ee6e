"""Accuracy in low precision, at any length: sums along the length have to be accumulated in float32."""

from __future__ import annotations

from copy import deepcopy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from attnlab.checks.capabilities import NotApplicable
from attnlab.checks.layer_under_test import LayerUnderTest, N
from attnlab.checks.probes import gradient
from attnlab.checks.registry import Values, check
from attnlab.nn.mixer import SequenceMixer

LONG = 1024
LENGTHS = {
    "float32": (N, 64, 257),
    "bfloat16": (N, 64, LONG),
    "float16": (N, 64, 257),
    "bfloat16 autocast": (N, 64, LONG),
}
"""The lengths that are measured in each precision."""

MAX_ROUNDOFFS = 18
"""The largest error in unit roundoffs of the dtype; 2 to 16 were measured."""

MAX_GROWTH = 2.0
"""The largest ratio between the errors at the longest length and at 64 tokens."""

Errors = dict[tuple[str, int], float]

_cache: WeakKeyDictionary[LayerUnderTest, Errors] = WeakKeyDictionary()


@check("low_precision_accuracy", limit=MAX_ROUNDOFFS)
def accuracy(case: LayerUnderTest) -> Values:
    """The error of outputs and gradients in float32, float16 and bfloat16 at up to 1,024 tokens, in unit roundoffs.

    The median over the tokens of the root mean square difference from float64 with the same rounded parameters,
    relative to that of the output. Normalizing a small vector amplifies the rounding of single tokens. Not at lengths
    where the output is not continuous: rounding may then change which keys are selected.
    """
    if not (errors := _errors(case)):
        raise NotApplicable("its output is not continuous at these lengths")
    for (name, length), error in errors.items():
        yield error, f"{name}, {length} tokens"


@check("low_precision_error_growth", limit=MAX_GROWTH)
def growth(case: LayerUnderTest) -> Values:
    """The ratio between the error of ``low_precision_accuracy`` at the longest length and at 64 tokens."""
    errors = _errors(case)
    if not all((name, lengths[-1]) in errors for name, lengths in LENGTHS.items()):
        raise NotApplicable("its output is not continuous at these lengths")
    for name, lengths in LENGTHS.items():
        short, long = errors[name, lengths[1]], errors[name, lengths[-1]]
        yield long / max(short, 1.0), f"{name}, from {lengths[1]} to {lengths[-1]} tokens"


def _errors(case: LayerUnderTest) -> Errors:
    """The larger of the errors of outputs and gradients; under autocast that of outputs."""
    case.require_continuity()
    if case not in _cache:
        layer = case.layer()
        _cache[case] = {
            (name, length): _error(case, name, length)
            for name, lengths in LENGTHS.items()
            for length in lengths
            if not isinstance(layer, SequenceMixer) or layer.is_continuous(length)
        }
    return _cache[case]


def _error(case: LayerUnderTest, name: str, length: int) -> float:
    dtype_name, _, autocast = name.partition(" ")
    dtype: torch.dtype = getattr(torch, dtype_name)
    layer = case.build(case.causal_choices[-1], dtype=torch.float32 if autocast else dtype)
    x = case.tokens(max(64 // length, 1), length).to(torch.float32 if autocast else dtype)
    exact_layer, exact_x = deepcopy(layer).double(), x.double().requires_grad_()
    expected = case(exact_layer, exact_x)
    roundoff = torch.finfo(dtype).eps / 2
    if autocast:
        with torch.no_grad(), torch.autocast(case.device.type, dtype=dtype):
            return _relative(case(layer, x), expected) / roundoff
    out = case(layer, x.requires_grad_())
    direction = case.random(*out.shape, seed=3)
    slopes = [gradient((y.double() * direction).sum(), leaf) for y, leaf in ((out, x), (expected, exact_x))]
    return max(_relative(out, expected), _relative(*slopes)) / roundoff


def _relative(actual: Tensor, expected: Tensor) -> float:
    errors = (actual.double() - expected).square().mean(-1)  # (B, N)
    return (errors.median() / expected.square().mean()).sqrt().item()
