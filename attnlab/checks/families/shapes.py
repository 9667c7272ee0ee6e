"""The shape, the dtype and the memory layout of inputs and outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from attnlab.checks.layer_under_test import B, LayerUnderTest, N
from attnlab.checks.probes import attempt, describe, difference, gradient, largest_over_configurations, not_finite
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
    wrong, detail = 0, ""
    for batch, length in sizes:
        x = case.tokens(batch, length)

        def call(is_causal: bool, mask: Mask | None, x: Tensor = x) -> Tensor:
            return case(case.build(is_causal), x, mask)

        for is_causal, mask in case.configurations(batch, length):
            out = attempt(call, is_causal, mask)
            if out.shape != x.shape or not_finite(out):
                result = "NaN" if out.shape == x.shape else str(tuple(out.shape))
                wrong, detail = wrong + 1, detail or f"{tuple(x.shape)} gives {result} ({describe(is_causal, mask)})"
    return Measurement(wrong, 0, detail)


@check("output_dtype")
def output_dtype(case: LayerUnderTest) -> Measurement:
    """The number of outputs with a wrong dtype or values that are not finite, in float64, float32 and bfloat16."""
    wrong, detail = 0, ""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        layer, x = case.layer(dtype=dtype), case.tokens(dtype=dtype)
        for mask in (None, *case.masks()):
            out = case(layer, x, mask)
            if out.dtype != dtype or not_finite(out):
                wrong, detail = wrong + 1, f"{dtype} gives {'NaN' if out.dtype == dtype else out.dtype}"
    return Measurement(wrong, 0, detail)


@check("bfloat16_autocast")
def bfloat16_autocast(case: LayerUnderTest) -> Measurement:
    """The difference between bfloat16 autocast and float32, in outputs and gradients."""

    def measure(is_causal: bool, mask: Mask | None) -> float:
        layer = case.build(is_causal, dtype=torch.float32)
        x = case.tokens(dtype=torch.float32).requires_grad_()
        expected = case(layer, x, mask)
        slope = gradient(expected.square().sum(), x)
        with torch.autocast(case.device.type, dtype=torch.bfloat16):
            out = case(layer, x, mask).float()
        return max(difference(out, expected), difference(gradient(out.square().sum(), x), slope))

    return largest_over_configurations(case, measure, limit=0.1)


@check("non_contiguous_input")
def non_contiguous_input(case: LayerUnderTest) -> Measurement:
    """The difference between tokens with other strides and a contiguous copy of them."""
    x = case.tokens()
    batch_second = x.transpose(0, 1).contiguous().transpose(0, 1)
    every_second = x.repeat_interleave(2, dim=-1)[..., ::2]
    expanded = x[:1].expand(B, -1, -1)

    def measure(is_causal: bool, mask: Mask | None) -> float:
        layer = case.build(is_causal)
        return max(
            difference(case(layer, tokens, mask), case(layer, tokens.contiguous(), mask))
            for tokens in (batch_second, every_second, expanded)
        )

    return largest_over_configurations(case, measure, limit=case.exact)
