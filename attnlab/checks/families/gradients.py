"""The backward pass: the slope that it claims is the slope, and extreme scores do not break it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnlab.checks.layer import EXACT, ROUNDED, B, M, N, Subject
from attnlab.checks.probes import attempt, gradients, not_finite, said, worst, worst_way
from attnlab.checks.registry import Measure, promise
from attnlab.masks import Mask

BLOCK = 64

STEPS = {EXACT: 1e-6, ROUNDED: 1e-3}
"""How far to go for a finite difference: over the noise of rounding."""

SLOPES = {EXACT: 1e-6, ROUNDED: 1e-2}
"""How far a gradient may lie from the difference that such a step gives."""


@promise("gradients match finite differences")
def slopes(subject: Subject) -> Measure:
    """The difference between the gradient and a central finite difference, in float64.

    At 7 tokens; without a mask also at 64, and in training with the same dropout each time. Along a random direction
    of each input and of each parameter by itself; relative where it is above one.
    """
    step = STEPS[subject.exact]

    def measured(
        causality: bool, mask: Mask | None, batch: int = B, length: int = N, **options: Any
    ) -> list[tuple[float, str]]:
        layer = subject.build(causality, **options)
        inputs = {"x": subject.tokens(batch, length)}
        if "context" in subject.claims and mask is None:
            inputs["context"] = subject.tokens(batch, length if causality else M, seed=1)
        if "attn_bias" in subject.claims:
            heads = subject.num_heads
            inputs["attn_bias"] = subject.random(
                batch, heads, length, inputs.get("context", inputs["x"]).shape[1], seed=2
            )
        tensors = {**inputs, **{n: p for n, p in layer.named_parameters() if p.requires_grad}}

        def output() -> Tensor:
            torch.manual_seed(0)
            extra = {name: tensor for name, tensor in inputs.items() if name != "x"}
            out = subject(layer, inputs["x"], mask, **extra)
            return (out * subject.random(*out.shape, seed=3)).sum()

        for tensor in inputs.values():
            tensor.requires_grad_()
        found = gradients(output(), list(tensors.values()))
        said_so = []
        for (name, tensor), slope in zip(tensors.items(), found, strict=True):
            direction = subject.random(*tensor.shape, seed=4)
            claimed = 0.0 if slope is None else (slope * direction).sum().item()
            with torch.no_grad():
                tensor += step * direction
                above = output().item()
                tensor -= 2 * step * direction
                below = output().item()
                tensor += step * direction
            true = (above - below) / (2 * step)
            said_so.append((abs(claimed - true) / max(1.0, abs(true)), f"{name}: {claimed:.4g} for {true:.4g}"))
        return said_so

    def all_measured() -> Iterator[tuple[float, str]]:
        for causality, mask in subject.ways():
            for value, detail in attempt(measured, causality, mask):
                yield value, f"{detail} ({said(causality, mask)})"
        for causality in subject.causal_choices:
            for value, detail in attempt(partial(measured, batch=1, length=BLOCK), causality, None):
                yield value, f"{detail} ({BLOCK} tokens, {said(causality, None)})"
            if "dropout" in subject.claims and subject.can_choose("dropout"):
                trained = partial(measured, train=True, dropout=subject.dropout)
                for value, detail in attempt(trained, causality, None):
                    yield value, f"{detail} (in training with dropout, {said(causality, None)})"

    return worst(all_measured(), SLOPES[subject.exact])


@promise("extreme scores stay finite")
def extreme_scores(subject: Subject) -> Measure:
    """How many outputs, gradients and weights are NaN or infinite, in float32 and float64.

    For tokens of 10² and 10³ (scores of about 10⁴ and 10⁶), and for a bias of ±10⁴.
    """

    def measured(causality: bool, mask: Mask | None) -> float:
        wrong = 0
        for dtype in (torch.float32, torch.float64):
            layer = subject.build(causality, dtype=dtype)
            tries: list[tuple[float, dict[str, Tensor]]] = [(1e2, {}), (1e3, {})]
            if "attn_bias" in subject.claims:
                bias = 1e4 * subject.random(2, subject.num_heads, N, N).sign().to(dtype)
                tries.append((1.0, {"attn_bias": bias}))
            for scale, extra in tries:
                x = (scale * subject.tokens(dtype=dtype)).requires_grad_()
                out = subject(layer, x, mask, **extra)
                sources = [x, *(p for p in layer.parameters() if p.requires_grad)]
                found = gradients(out.sum(), sources)
                wrong += not_finite(out, *found)
                if "weights" in subject.claims:
                    wrong += not_finite(subject.attention_weights(layer, x, mask, **extra))
        return wrong

    return worst_way(subject, measured, limit=0)
