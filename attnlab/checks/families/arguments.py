"""Unsupported and mismatched arguments raise, and equivalent arguments give equal outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch

from attnlab.checks.capabilities import NotApplicable
from attnlab.checks.layer_under_test import B, LayerUnderTest, N, as_matrix
from attnlab.checks.probes import EXACT, describe, difference, exact, located
from attnlab.checks.registry import Measurement, Values, check
from attnlab.masks import documents, padding

LONG = 307
"""Long enough that some backends compute the queries in chunks."""

Calls = dict[str, Callable[[], Any]]


@check("unsupported_arguments_raise", needs=("contract",))
def unsupported_arguments(case: LayerUnderTest) -> Measurement:
    """The number of arguments that the card does not support and that do not raise."""
    layer, x = case.layer(), case.tokens()
    square = torch.ones(N, N, device=x.device)
    calls: Calls = {
        "causal": partial(case.layer, causal=True),
        "padding": partial(layer, x, mask=padding(torch.tensor([N] * B, device=x.device))),
        "segments": partial(layer, x, mask=documents(torch.arange(N, device=x.device))),
        "arbitrary_mask": partial(layer, x, mask=square.bool()),
        "attn_bias": partial(layer, x, attn_bias=square.double()),
        "context": partial(layer, x, context=x),
        "cache": partial(layer, x, cache=object()),
    }
    if hasattr(layer, "attention_weights"):
        calls["weights"] = partial(case.attention_weights, layer, x)
    unsupported = {name: call for name, call in calls.items() if name not in case.capabilities}
    return _accepted(unsupported, TypeError, NotApplicable)  # UnsupportedError is a TypeError


@check("float_mask_raises", needs=("contract", "arbitrary_mask"))
def float_mask(case: LayerUnderTest) -> Measurement:
    """The number of floating-point masks that are accepted, or whose error does not mention ``attn_bias=``."""
    layer, x, wrong = case.layer(), case.tokens(), 0
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        try:
            layer(x, mask=torch.zeros(N, N, dtype=dtype, device=x.device))
            wrong += 1
        except TypeError as error:
            wrong += "bias=" not in str(error)
    return Measurement(wrong, 0, "float masks are accepted, or the error does not mention attn_bias=")


@check("mismatched_shapes_raise", needs=("contract",))
def mismatched_shapes(case: LayerUnderTest) -> Measurement:
    """The number of mismatched shapes that do not raise a ValueError."""
    layer, x = case.layer(), case.tokens()
    wide = torch.cat([x, x], -1)
    calls: Calls = {"x of another width": partial(layer, wide), "x without a batch": partial(layer, x[0])}
    if "arbitrary_mask" in case.capabilities:
        for shape in ((N, N + 1), (N + 1, N), (B + 1, N, N), (B, case.num_heads + 1, N, N)):
            mask = torch.ones(shape, dtype=torch.bool, device=x.device)
            calls[f"a mask of shape {shape}"] = partial(layer, x, mask=mask)
    if "context" in case.capabilities:
        calls["a context of another batch"] = partial(layer, x, context=case.tokens(batch=B + 1))
        calls["a context of another width"] = partial(layer, x, context=wide)
    return _accepted(calls, ValueError)


@check("causal_context_length_mismatch_raises", needs=("contract", "causal", "context"))
def causal_context(case: LayerUnderTest) -> Measurement:
    """The number of contexts of another length that a causal layer accepts; their positions are not comparable."""
    layer, x = case.layer(causal=True), case.tokens()
    calls: Calls = {
        f"{length} tokens of context": partial(layer, x, context=case.tokens(length=length, seed=1))
        for length in (1, N - 2, N + 1, 2 * N)
    }
    return _accepted(calls, ValueError)


def _accepted(calls: Calls, *expected: type[Exception]) -> Measurement:
    accepted = [name for name, call in calls.items() if not _raises(call, *expected)]
    return Measurement(len(accepted), 0, f"accepts {', '.join(accepted) or 'nothing'}")


def _raises(call: Callable[[], Any], *expected: type[Exception]) -> bool:
    try:
        call()
    except expected:
        return True
    return False


@check("mask_matches_boolean_tensor", needs=("contract", "arbitrary_mask"), limit=EXACT)
def mask_matches_tensor(case: LayerUnderTest) -> Values:
    """The difference between a mask and the same mask as a Boolean tensor of two, three and four axes."""
    x = case.tokens()
    for is_causal, mask in product(case.causal_choices, case.masks()):
        layer = case.build(is_causal)
        expected, matrix = layer(x, mask=mask), as_matrix(mask, x, x)
        tensors = [matrix, matrix.unsqueeze(1).expand(-1, case.num_heads, -1, -1)]
        if bool((matrix == matrix[0]).all()):
            tensors.append(matrix[0])
        for tensor in tensors:
            yield difference(layer(x, mask=tensor), expected), f"{mask} as a tensor of {tensor.dim()} axes"


@check("integer_mask_raises_or_is_boolean", needs=("arbitrary_mask",), limit=exact)
def integer_mask(case: LayerUnderTest) -> Values:
    """The difference between an integer mask of zeros and ones that does not raise and the Boolean mask."""
    x = case.tokens()
    for is_causal in case.causal_choices:
        layer = case.build(is_causal)
        for mask, dtype in product(
            case.masks(is_causal=is_causal), (torch.uint8, torch.int8, torch.int32, torch.int64)
        ):
            matrix = as_matrix(mask, x, x)
            try:
                out = case(layer, x, matrix.to(dtype))
            except Exception:  # rejected, which is allowed
                continue
            yield difference(out, case(layer, x, matrix)), f"a mask of {dtype} ({describe(is_causal, mask)})"


@check("attn_bias_broadcasts", needs=("contract", "attn_bias"), limit=exact)
def bias_broadcasts(case: LayerUnderTest) -> Values:
    """The difference between a bias of a shape that broadcasts to (B, H, N, M) and the expanded bias.

    Also between a bias in float32 and in float64; 1 if a Boolean or integer bias does not raise.
    """
    heads = case.num_heads
    for is_causal in case.causal_choices:
        layer = case.build(is_causal)
        for n in (N, LONG):
            x = case.tokens(length=n)
            shapes: list[tuple[int, ...]] = [(), (n,), (n, 1), (heads, 1, 1)]
            if n == N:
                shapes += [(n, n), (heads, n, n), (1, heads, 1, n), (B, 1, n, 1), (B, 1, 1, n)]
            masks = (None, *case.masks(length=n, is_causal=is_causal)[:1])
            for mask, shape in product(masks, shapes):
                bias = case.random(*shape, seed=2)
                with located(where := f"a bias of shape {shape} for {n} tokens ({describe(is_causal, mask)})"):
                    out = case(layer, x, mask, attn_bias=bias)
                expanded = bias.expand(B, heads, n, n).contiguous()
                yield difference(out, case(layer, x, mask, attn_bias=expanded)), where
        x = case.tokens()
        for mask in (None, *case.masks(is_causal=is_causal)[:1]):
            single = case.random(B, heads, N, N, seed=2).float()
            outs = (case(layer, x, mask, attn_bias=bias) for bias in (single, single.double()))
            yield difference(*outs), f"a bias in float32 ({describe(is_causal, mask)})"
        for dtype in (torch.bool, torch.int64):
            wrong = torch.ones(N, N, dtype=dtype, device=x.device)
            accepted = not _raises(partial(layer, x, attn_bias=wrong), TypeError)
            yield float(accepted), f"a bias of {dtype} is accepted"
