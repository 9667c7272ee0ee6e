"""What goes in comes out: the shape, the dtype, whatever the strides, and nothing for nothing."""

from __future__ import annotations

import torch

from attnlab.checks.layer import B, N, Subject
from attnlab.checks.probes import attempt, difference, gradient, not_finite, said, worst_way
from attnlab.checks.registry import Measure, promise
from attnlab.masks import Mask


@promise("keeps the shape")
def keeps_the_shape(subject: Subject) -> Measure:
    """One item or two; one token, an odd or an even number: how many outputs have another shape or are not finite."""
    return _reshaped(subject, [(1, 1), (B, 1), (1, N), (B, N), (B, N + 1)])


@promise("takes an empty batch or sequence")
def takes_nothing(subject: Subject) -> Measure:
    """B=0 and N=0: how many outputs have another shape."""
    return _reshaped(subject, [(0, N), (B, 0)])


def _reshaped(subject: Subject, sizes: list[tuple[int, int]]) -> Measure:
    wrong, detail = 0, ""
    for batch, length in sizes:
        x = subject.tokens(batch, length)

        def asked(causality: bool, mask: Mask | None, x: torch.Tensor = x) -> torch.Tensor:
            return subject(subject.build(causality), x, mask)

        for causality, mask in subject.ways(batch, length):
            out = attempt(asked, causality, mask)
            if out.shape != x.shape or not_finite(out):
                gives = "NaN" if out.shape == x.shape else str(tuple(out.shape))
                wrong, detail = wrong + 1, detail or f"{tuple(x.shape)} gives {gives} ({said(causality, mask)})"
    return Measure(wrong, 0, detail)


@promise("keeps the dtype")
def keeps_the_dtype(subject: Subject) -> Measure:
    """float64, float32 and bfloat16: how many outputs have another dtype or are not finite."""
    wrong, detail = 0, ""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        layer, x = subject.layer(dtype=dtype), subject.tokens(dtype=dtype)
        for mask in (None, *subject.masks()):
            out = subject(layer, x, mask)
            if out.dtype != dtype or not_finite(out):
                wrong, detail = wrong + 1, f"{dtype} gives {'NaN' if out.dtype == dtype else out.dtype}"
    return Measure(wrong, 0, detail)


@promise("runs under bfloat16 autocast")
def autocasts(subject: Subject) -> Measure:
    """The difference from float32, outputs and gradients."""

    def measured(causality: bool, mask: Mask | None) -> float:
        layer = subject.build(causality, dtype=torch.float32)
        x = subject.tokens(dtype=torch.float32).requires_grad_()
        expected = subject(layer, x, mask)
        slope = gradient(expected.square().sum(), x)
        with torch.autocast(subject.device.type, dtype=torch.bfloat16):
            out = subject(layer, x, mask).float()
        found = gradient(out.square().sum(), x)
        return max(difference(out, expected), difference(found, slope))

    return worst_way(subject, measured, limit=0.1)


@promise("takes any strides")
def takes_any_strides(subject: Subject) -> Measure:
    """Tokens that do not lie one after another in memory: the difference from a contiguous copy."""
    x = subject.tokens()
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    spread = x.repeat_interleave(2, dim=-1)[..., ::2]
    repeated = x[:1].expand(B, -1, -1)

    def measured(causality: bool, mask: Mask | None) -> float:
        layer = subject.build(causality)
        return max(
            difference(subject(layer, given, mask), subject(layer, given.contiguous(), mask))
            for given in (turned, spread, repeated)
        )

    return worst_way(subject, measured, limit=subject.exact)
