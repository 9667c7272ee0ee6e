"""Gradients match finite differences, and extreme scores give finite values."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnlab.checks.layer_under_test import EXACT, ROUNDED, B, LayerUnderTest, M, N
from attnlab.checks.probes import attempt, describe, gradients, largest, largest_over_configurations, not_finite
from attnlab.checks.registry import Measurement, check
from attnlab.masks import Mask

BLOCK = 64

STEPS = {EXACT: 1e-6, ROUNDED: 1e-3}
"""The step of the finite difference for each tolerance of the layer: above the rounding noise."""

TOLERANCES = {EXACT: 1e-6, ROUNDED: 1e-2}
"""The tolerance between a gradient and a finite difference with that step."""


@check("gradients_match_finite_differences")
def finite_differences(case: LayerUnderTest) -> Measurement:
    """The difference between the gradient and a central finite difference, in float64.

    At 7 tokens; without a mask also at 64, and in training with the same dropout in every call. Along a random
    direction in each input and each parameter separately; relative where the slope is above 1.
    """
    step = STEPS[case.exact]

    def measure(
        is_causal: bool, mask: Mask | None, batch: int = B, length: int = N, **options: Any
    ) -> list[tuple[float, str]]:
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
        values = []
        for (name, tensor), slope in zip(tensors.items(), slopes, strict=True):
            direction = case.random(*tensor.shape, seed=4)
            actual = (slope * direction).sum().item()
            with torch.no_grad():
                tensor += step * direction
                above = output().item()
                tensor -= 2 * step * direction
                below = output().item()
                tensor += step * direction
            expected = (above - below) / (2 * step)
            error = abs(actual - expected) / max(1.0, abs(expected))
            values.append((error, f"{name}: {actual:.4g}, expected {expected:.4g}"))
        return values

    def measure_all() -> Iterator[tuple[float, str]]:
        runs = [(measure, "", is_causal, mask) for is_causal, mask in case.configurations()]
        for is_causal in case.causal_choices:
            runs.append((partial(measure, batch=1, length=BLOCK), f"{BLOCK} tokens, ", is_causal, None))
            if options := case.dropout_options:
                runs.append((partial(measure, train=True, **options), "training with dropout, ", is_causal, None))
        for run, where, is_causal, mask in runs:
            for value, detail in attempt(run, is_causal, mask):
                yield value, f"{detail} ({where}{describe(is_causal, mask)})"

    return largest(measure_all(), TOLERANCES[case.exact])


@check("extreme_scores_stay_finite")
def extreme_scores(case: LayerUnderTest) -> Measurement:
    """The number of outputs, gradients and attention weights that are NaN or infinite, in float32 and float64.

    For tokens of scale 10² and 10³ (scores of about 10⁴ and 10⁶), and for a bias of ±10⁴.
    """

    def measure(is_causal: bool, mask: Mask | None) -> float:
        wrong = 0
        for dtype in (torch.float32, torch.float64):
            layer = case.build(is_causal, dtype=dtype)
            trials: list[tuple[float, dict[str, Tensor]]] = [(1e2, {}), (1e3, {})]
            if "attn_bias" in case.capabilities:
                bias = 1e4 * case.random(2, case.num_heads, N, N).sign().to(dtype)
                trials.append((1.0, {"attn_bias": bias}))
            for scale, extra in trials:
                x = (scale * case.tokens(dtype=dtype)).requires_grad_()
                out = case(layer, x, mask, **extra)
                leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
                wrong += not_finite(out, *gradients(out.sum(), leaves))
                if "weights" in case.capabilities:
                    wrong += not_finite(case.attention_weights(layer, x, mask, **extra))
        return wrong

    return largest_over_configurations(case, measure, limit=0)
