"""The shape, the dtype and the memory layout of inputs and outputs."""

from __future__ import annotations

import torch

from attnlab.checks.layer_under_test import B, LayerUnderTest, N
from attnlab.checks.probes import (
    describe,
    difference,
    every_configuration,
    exact,
    gradient,
    located,
    not_finite,
    typical_difference,
)
from attnlab.checks.registry import Measurement, check
from attnlab.masks import Mask


@check("output_shape")
def output_shape(case: LayerUnderTest) -> Measurement:
    """The number of outputs with a wrong shape or NaN or infinite values, for 1 and 2 items of 1, 7 and 8 tokens."""
    return _count_wrong(case, [(1, 1), (B, 1), (1, N), (B, N), (B, N + 1)])


@check("empty_input")
def empty_input(case: LayerUnderTest) -> Measurement:
    """The number of outputs with a wrong shape for an empty batch and an empty sequence."""
    return _count_wrong(case, [(0, N), (B, 0)])


def _count_wrong(case: LayerUnderTest, sizes: list[tuple[int, int]]) -> Measurement:
    wrong = []
    for batch, length in sizes:
        x = case.tokens(batch, length)
        for is_causal, mask in case.configurations(batch, length):
            with located(where := describe(is_causal, mask)):
                out = case(case.build(is_causal), x, mask)
            if out.shape != x.shape or not_finite(out):
                result = "NaN" if out.shape == x.shape else str(tuple(out.shape))
                wrong.append(f"{tuple(x.shape)} gives {result} ({where})")
    return Measurement(len(wrong), 0, wrong[0] if wrong else "")


@check("output_dtype")
def output_dtype(case: LayerUnderTest) -> Measurement:
    """The number of outputs with a wrong dtype or values that are not finite, in float64, float32 and bfloat16."""
    wrong = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        layer, x = case.layer(dtype=dtype), case.tokens(dtype=dtype)
        for mask in (None, *case.masks()):
            out = case(layer, x, mask)
            if out.dtype != dtype or not_finite(out):
                wrong.append(f"{dtype} gives {'NaN' if out.dtype == dtype else out.dtype}")
    return Measurement(len(wrong), 0, wrong[-1] if wrong else "")


@check("bfloat16_autocast", limit=0.1)
@every_configuration
def bfloat16_autocast(case: LayerUnderTest, is_causal: bool, mask: Mask | None) -> float:
    """The difference between bfloat16 autocast and float32 at the median token, in outputs and gradients."""
    layer = case.build(is_causal, dtype=torch.float32)
    x = case.tokens(dtype=torch.float32).requires_grad_()
    expected = case(layer, x, mask)
    slope = gradient(expected.square().sum(), x)
    with torch.autocast(case.device.type, dtype=torch.bfloat16):
        out = case(layer, x, mask).float()
    return max(typical_difference(out, expected), typical_difference(gradient(out.square().sum(), x), slope))


@check("non_contiguous_input", limit=exact)
@every_configuration
def non_contiguous_input(case: LayerUnderTest, is_causal: bool, mask: Mask | None) -> float:
    """The difference between tokens with other strides and a contiguous copy of them."""
    layer, x = case.build(is_causal), case.tokens()
    batch_second = x.transpose(0, 1).contiguous().transpose(0, 1)
    every_second = x.repeat_interleave(2, dim=-1)[..., ::2]
    return max(
        difference(case(layer, tokens, mask), case(layer, tokens.contiguous(), mask))
        for tokens in (batch_second, every_second, x[:1].expand(B, -1, -1))
    )
