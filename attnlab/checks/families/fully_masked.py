"""Fully masked rows: queries that may not attend to any key."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from attnlab.checks.layer_under_test import B, LayerUnderTest, N
from attnlab.checks.probes import describe, located, not_finite
from attnlab.checks.registry import Values, check
from attnlab.masks import Mask, causal, from_tensor, padding


@check("fully_masked_rows_are_zero", needs=("padding",))
def zeros(case: LayerUnderTest) -> Values:
    """The largest value in the output of a fully masked query, in eval mode and in training."""
    for is_causal, mask in _configurations(case):
        x = case.tokens()
        with located(where := describe(is_causal, mask)):
            masked = ~case.allowed(is_causal, mask, x).any(-1)
            for train in (False, True):
                yield case(case.build(is_causal, train=train), x, mask)[masked].abs().max().item(), where


@check("fully_masked_rows_have_finite_gradients", needs=("padding",))
def finite_gradients(case: LayerUnderTest) -> Values:
    """The number of gradients, of tokens and parameters, that are NaN or infinite, in float64 and float32."""
    for is_causal, mask in _configurations(case):
        wrong = 0
        with located(where := describe(is_causal, mask)):
            for dtype in (torch.float64, torch.float32):
                layer, x = case.build(is_causal, dtype=dtype), case.tokens(dtype=dtype).requires_grad_()
                case(layer, x, mask).square().sum().backward()
                wrong += not_finite(x.grad, *(p.grad for p in layer.parameters()))
        yield wrong, where


def _configurations(case: LayerUnderTest) -> Iterator[tuple[bool, Mask]]:
    """Causal or not, masks in which one item, some rows or all rows are fully masked."""
    device = case.device
    left = padding(torch.tensor([N, 3], device=device), side="left", max_length=N)
    for is_causal in case.causal_choices:
        masks = [padding(torch.tensor(lengths, device=device)) for lengths in ([N, 0], [0, 0])]
        masks += [left] if is_causal else []
        if "arbitrary_mask" in case.capabilities:
            some = case.random(B, N, N) > 0
            some[0, 2:4] = False
            some[1, 0] = False
            none = torch.zeros(N, N, dtype=torch.bool, device=device)
            masks += [from_tensor(some), from_tensor(none), left & causal()]
        yield from ((is_causal, mask) for mask in masks)
