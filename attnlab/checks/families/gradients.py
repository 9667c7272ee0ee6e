"""Gradients match finite differences, and extreme scores give finite values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.checks.layer_under_test import EXACT, ROUNDED, B, LayerUnderTest, M, N
from attnlab.checks.probes import describe, every_configuration, gradients, located, not_finite
from attnlab.checks.registry import Values, check
from attnlab.masks import Mask

BLOCK = 64

STEPS = {EXACT: 1e-6, ROUNDED: 1e-3}
"""The step of the finite difference for each tolerance of the layer: above the rounding noise."""

TOLERANCES = {EXACT: 1e-6, ROUNDED: 1e-2}
"""The tolerance between a gradient and a finite difference with that step."""


def _tolerance(case: LayerUnderTest) -> float:
    return TOLERANCES[case.exact]


@check("gradients_match_finite_differences", limit=_tolerance)
def finite_differences(case: LayerUnderTest) -> Values:
    """The difference between the gradient and a central finite difference, in float64.

    At 7 tokens; without a mask also at 64, and in training with the same dropout in every call. Along a random
    direction in each input and each parameter separately; relative where the slope is above 1.
    """
    runs: list[tuple[bool, Mask | None, str, dict[str, Any]]] = [(*run, "", {}) for run in case.configurations()]
    for is_causal in case.causal_choices:
        runs.append((is_causal, None, f"{BLOCK} tokens, ", {"batch": 1, "length": BLOCK}))
        if options := case.dropout_options:
            runs.append((is_causal, None, "training with dropout, ", {"train": True, **options}))
    for is_causal, mask, where, options in runs:
        with located(configuration := describe(is_causal, mask)):
            for value, detail in _slope_errors(case, is_causal, mask, **options):
                yield value, f"{detail} ({where}{configuration})"


def _slope_errors(
    case: LayerUnderTest, is_causal: bool, mask: Mask | None, batch: int = B, length: int = N, **options: Any
) -> Values:
    layer = case.build(is_causal, **options)
    inputs = {"x": case.tokens(batch, length)}
    if "context" in case.capabilities and mask is None:
        inputs["context"] = case.tokens(batch, length if is_causal else M, seed=1)
    if "attn_bias" in case.capabilities:
        keys = inputs.get("context", inputs["x"]).shape[1]
        inputs["attn_bias"] = case.random(batch, case.num_heads, length, keys, seed=2)
    tensors = {**inputs, **{n: p for n, p in layer.named_parameters() if p.requires_grad}}

    def output() -> Tensor:
        torch.manual_seed(0)
        extra = {name: tensor for name, tensor in inputs.items() if name != "x"}
        out = case(layer, inputs["x"], mask, **extra)
        return (out * case.random(*out.shape, seed=3)).sum()

    for tensor in inputs.values():
        tensor.requires_grad_()
    slopes = gradients(output(), list(tensors.values()))
    for (name, tensor), slope in zip(tensors.items(), slopes, strict=True):
        direction, step = case.random(*tensor.shape, seed=4), STEPS[case.exact]
        actual = (slope * direction).sum().item()
        with torch.no_grad():
            tensor += step * direction
            above = output().item()
            tensor -= 2 * step * direction
            below = output().item()
            tensor += step * direction
        expected = (above - below) / (2 * step)
        yield abs(actual - expected) / max(1.0, abs(expected)), f"{name}: {actual:.4g}, expected {expected:.4g}"


@check("extreme_scores_stay_finite")
@every_configuration
def extreme_scores(case: LayerUnderTest, is_causal: bool, mask: Mask | None) -> float:
    """The number of outputs, gradients and attention weights that are NaN or infinite, in float32 and float64.

    For tokens of scale 10² and 10³ (scores of about 10⁴ and 10⁶), and for a bias of ±10⁴.
    """
    wrong = 0
    for dtype in (torch.float32, torch.float64):
        layer = case.build(is_causal, dtype=dtype)
        trials: list[tuple[float, dict[str, Tensor]]] = [(1e2, {}), (1e3, {})]
        if "attn_bias" in case.capabilities:
            trials.append((1.0, {"attn_bias": 1e4 * case.random(2, case.num_heads, N, N).sign().to(dtype)}))
        for scale, extra in trials:
            x = (scale * case.tokens(dtype=dtype)).requires_grad_()
            out = case(layer, x, mask, **extra)
            leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
            wrong += not_finite(out, *gradients(out.sum(), leaves))
            if "weights" in case.capabilities:
                wrong += not_finite(case.attention_weights(layer, x, mask, **extra))
    return wrong
