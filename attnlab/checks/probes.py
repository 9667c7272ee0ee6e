"""Measurements that the checks share: differences, gradients and leaks.

Axes: B batch, N length, D embed_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps

import torch
from torch import Tensor

from attnlab.checks.capabilities import CheckFailed, NotApplicable
from attnlab.checks.layer_under_test import EXACT as EXACT
from attnlab.checks.layer_under_test import LayerUnderTest, first_line
from attnlab.checks.registry import Values
from attnlab.masks import Mask

NOISE_SCALE = 1e3
"""The scale of the noise that replaces forbidden tokens: a leak of one part in 10¹² is measured."""


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value where that is above 1; NaN if there is a NaN.

    Raises:
        ValueError: the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"the shape is {tuple(actual.shape)}, not {tuple(expected.shape)}")
    if actual.numel() == 0:
        return 0.0
    scale = max(1.0, expected.abs().max().item())
    return (actual - expected).abs().max().item() / scale


def typical_difference(actual: Tensor, expected: Tensor) -> float:
    """The `difference` of each token of (B, N, D), in the median over the tokens; NaN if there is a NaN.

    For rounded computations: a norm amplifies the rounding of a token whose heads are almost zero.
    """
    if actual.shape != expected.shape or actual.numel() == 0:
        return difference(actual, expected)
    scale = expected.abs().max().clamp_min(1.0)
    return ((actual - expected).abs().amax(-1) / scale).median().item()


def differences(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest `difference` between two lists of tensors; NaN if there is a NaN."""
    values = [difference(a, b) for a, b in zip(actual, expected, strict=True)]
    return math.nan if any(map(math.isnan, values)) else max(values)


def not_finite(*tensors: Tensor | None) -> int:
    """The number of values that are NaN or infinite."""
    return sum(int((~t.isfinite()).sum()) for t in tensors if t is not None)


def exact(case: LayerUnderTest) -> float:
    """The tolerance of the layer, as the limit of a check."""
    return case.exact


def every_configuration(
    measure: Callable[[LayerUnderTest, bool, Mask | None], float],
) -> Callable[[LayerUnderTest], Values]:
    """``measure(case, is_causal, mask)`` as a function of the layer that measures every configuration."""

    @wraps(measure)
    def measure_all(case: LayerUnderTest) -> Values:
        for is_causal, mask in case.configurations():
            with located(where := describe(is_causal, mask)):
                yield measure(case, is_causal, mask), where

    return measure_all


@contextmanager
def located(where: str) -> Iterator[None]:
    """Turn an exception of the layer into a CheckFailed whose message ends with ``where``."""
    try:
        yield
    except (NotApplicable, CheckFailed):
        raise
    except Exception as error:
        raise CheckFailed(f"{first_line(error)} ({where})") from error


def describe(is_causal: bool, mask: Mask | None) -> str:
    """A configuration in words."""
    parts = [*(["causal=True"] if is_causal else []), *([f"mask={mask}"] if mask is not None else [])]
    return " and ".join(parts) or "no mask"


def gradients(output: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a scalar in each leaf, zeros where it does not depend on it; the graph is kept.

    A layer that uses a reentrant ``torch.utils.checkpoint`` supports ``backward()`` only, which is then used.
    """
    slopes: Sequence[Tensor | None]
    try:
        slopes = torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        saved = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        output.backward(retain_graph=True)
        slopes = [leaf.grad for leaf in leaves]
        for leaf, grad in zip(leaves, saved, strict=True):
            leaf.grad = grad
    return [torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(leaves, slopes, strict=True)]


def gradient(output: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of a scalar in one leaf, zeros where it does not depend on it."""
    return gradients(output, [leaf])[0]


def input_sensitivity(run: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[Tensor]:
    """The gradient of output i of every item in every other token, (B, N), for i = N - 1 down to 0."""
    x = x.detach().requires_grad_()
    out, direction = run(x), _random(x.shape[-1:], x)
    for i in reversed(range(x.shape[1])):
        sensitivity = gradient((out[:, i] @ direction).sum(), x).abs().amax(-1)
        yield sensitivity.index_fill(1, torch.tensor(i, device=x.device), 0.0)


def leaks(run: Callable[[Tensor], Tensor], x: Tensor, forbidden: Tensor, rows: Iterable[int]) -> Values:
    """The dependence of each output on forbidden tokens: by gradient, and by replacing them with large noise.

    The noise detects what has no gradient, such as a rank, a choice or a detached statistic. ``forbidden``, Boolean
    (B, N, N), are the tokens j that output i of an item must not depend on; j = i is ignored. ``rows`` are the outputs
    to measure.
    """
    forbidden = forbidden & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    direction, noise = _random(x.shape[-1:], x), NOISE_SCALE * _random(x.shape, x)
    x = x.detach().requires_grad_()
    out = run(x)
    for i in rows:
        slope = gradient((out[:, i] @ direction).sum(), x)
        through = slope.abs().amax(-1) * forbidden[:, i]
        # Gradients stay enabled: without them a layer may draw its dropout differently.
        changed = run(torch.where(forbidden[:, i, :, None], noise, x).detach()).detach()
        value = max(through.max().item(), difference(changed[:, i], out[:, i]))
        if not_finite(out[:, i], slope):
            yield math.nan, f"output {i} or its gradient is not finite"
        elif bool(through.any()):
            item, token = divmod(int(through.argmax()), x.shape[1])
            yield value, f"output {i} depends on token {token} of item {item}"
        else:
            yield value, f"output {i} changes with tokens that are masked for it"


def batched_leaks(
    run: Callable[[Tensor], Tensor], x: Tensor, forbidden: Tensor, rows: Sequence[int]
) -> tuple[float, str]:
    """The largest of the `leaks` of one sequence, (1, N, D), in one batch with an item for each output.

    It is NaN where an output or a gradient is not finite.
    """
    index, item = torch.tensor(rows, device=x.device), torch.arange(len(rows), device=x.device)
    masked = forbidden[0, index].index_put((item, index), torch.tensor(False, device=x.device))
    direction, noise = _random(x.shape[-1:], x), NOISE_SCALE * _random(x.shape, x)
    tokens = x.detach().repeat(len(rows), 1, 1).requires_grad_()
    out = run(tokens)[item, index]
    slope = gradient((out @ direction).sum(), tokens)
    # Gradients stay enabled: without them a layer may draw its dropout differently.
    changed = run(torch.where(masked.unsqueeze(-1), noise, tokens).detach())[item, index].detach()
    if not_finite(out, slope):
        return math.nan, "an output or its gradient is not finite"
    through = slope.abs().amax(-1) * masked
    moved = (changed - out).abs().amax(-1) / out.abs().max().clamp(min=1.0)
    leak = torch.maximum(through.amax(-1), moved)
    return leak.max().item(), f"output {rows[int(leak.argmax())]} depends on tokens that are masked for it"


def seeded(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``run`` with the same seed in every call, so that the same values are dropped."""

    def seeded_run(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return run(x)

    return seeded_run


def _random(shape: Sequence[int], like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(tuple(shape), dtype=torch.float64, generator=generator).to(like)
