"""Fully masked rows: queries that may not attend to any key."""

from __future__ import annotations

from collections.abc import Callable

import torch

from attnlab.checks.layer_under_test import B, LayerUnderTest, N
from attnlab.checks.probes import attempt, describe, largest, not_finite
from attnlab.checks.registry import Measurement, check
from attnlab.masks import Mask, causal, from_tensor, padding


@check("fully_masked_rows_are_zero", needs=("padding",))
def zeros(case: LayerUnderTest) -> Measurement:
    """The largest value in the output of a fully masked query, in eval mode and in training."""

    def measure(is_causal: bool, mask: Mask | None) -> float:
        x = case.tokens()
        masked = ~case.allowed(is_causal, mask, x).any(-1)
        outs = [case(case.build(is_causal, train=train), x, mask) for train in (False, True)]
        return max(out[masked].abs().max().item() for out in outs)

    return _over_masks(case, measure)


@check("fully_masked_rows_have_finite_gradients", needs=("padding",))
def finite_gradients(case: LayerUnderTest) -> Measurement:
    """The number of gradients, of tokens and parameters, that are NaN or infinite, in float64 and float32."""

    def measure(is_causal: bool, mask: Mask | None) -> float:
        wrong = 0
        for dtype in (torch.float64, torch.float32):
            layer, x = case.build(is_causal, dtype=dtype), case.tokens(dtype=dtype).requires_grad_()
            case(layer, x, mask).square().sum().backward()
            wrong += not_finite(x.grad, *(p.grad for p in layer.parameters()))
        return wrong

    return _over_masks(case, measure)


def _over_masks(case: LayerUnderTest, measure: Callable[[bool, Mask | None], float]) -> Measurement:
    values = (
        (attempt(measure, is_causal, mask), describe(is_causal, mask))
        for is_causal in case.causal_choices
        for mask in _masks(case, is_causal)
    )
    return largest(values, limit=0)


def _masks(case: LayerUnderTest, is_causal: bool) -> list[Mask]:
    """Masks in which one item, some rows or all rows are fully masked."""
    device = case.device
    masks = [padding(torch.tensor(lengths, device=device)) for lengths in ([N, 0], [0, 0])]
    left = padding(torch.tensor([N, 3], device=device), side="left", max_length=N)
    masks += [left] if is_causal else []
    if "arbitrary_mask" in case.capabilities:
        some = case.random(B, N, N) > 0
        some[0, 2:4] = False
        some[1, 0] = False
        none = torch.zeros(N, N, dtype=torch.bool, device=device)
        masks += [from_tensor(some), from_tensor(none), left & causal()]
    return masks
