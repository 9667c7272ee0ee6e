"""What the checks measure with.

Axes: B batch, N length, D embed_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from attnlab.checks.capabilities import Broken, NotClaimed
from attnlab.checks.layer import EXACT as EXACT
from attnlab.checks.layer import Subject, first_line
from attnlab.checks.registry import Measure
from attnlab.masks import Mask

T = TypeVar("T")

SHOUT = 1e3
"""What is forbidden is replaced by noise this loud: a leak of one part in 10¹² is heard."""


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number expected where that is above one; nan for NaN.

    Raises:
        ValueError: for different shapes.
    """
    if found.shape != expected.shape:
        raise ValueError(f"the shape is {tuple(found.shape)}, not {tuple(expected.shape)}")
    if found.numel() == 0:
        return 0.0
    scale = max(1.0, expected.abs().max().item())
    return (found - expected).abs().max().item() / scale


def not_finite(*tensors: Tensor | None) -> int:
    """How many numbers are NaN or infinite."""
    return sum(int((~t.isfinite()).sum()) for t in tensors if t is not None)


def worst(measured: Iterable[tuple[float, str]], limit: float) -> Measure:
    """The largest of several numbers, or NaN where one is; and where the first was measured that is too large."""
    value, detail = 0.0, ""
    for number, where in measured:
        if not number <= limit:
            detail = detail or where
        if math.isnan(number):
            return Measure(number, limit, detail)
        value = max(value, number)
    return Measure(value, limit, detail)


def worst_way(subject: Subject, measure: Callable[[bool, Mask | None], float], limit: float) -> Measure:
    """The largest of what ``measure(causality, mask)`` gives over every way to ask the layer."""
    return worst(
        ((attempt(measure, causality, mask), said(causality, mask)) for causality, mask in subject.ways()), limit
    )


def attempt(measure: Callable[[bool, Mask | None], T], causality: bool, mask: Mask | None) -> T:
    """``measure(causality, mask)``.

    Raises:
        Broken: where it raises, with what was asked.
    """
    try:
        return measure(causality, mask)
    except (NotClaimed, Broken):
        raise
    except Exception as error:
        raise Broken(f"{first_line(error)} ({said(causality, mask)})") from error


def said(causality: bool, mask: Mask | None) -> str:
    """How a layer was asked."""
    asked = [*(["causal=True"] if causality else []), *([f"mask={mask}"] if mask is not None else [])]
    return " and ".join(asked) or "asked plainly"


def gradients(output: Tensor, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradient of a number in each leaf, None where it is not heard; the graph is kept.

    A layer that computes its steps anew with ``torch.utils.checkpoint`` may know ``backward()`` alone.
    """
    try:
        return list(torch.autograd.grad(output, leaves, retain_graph=True, allow_unused=True))
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
    kept = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    output.backward(retain_graph=True)
    found = [leaf.grad for leaf in leaves]
    for leaf, before in zip(leaves, kept, strict=True):
        leaf.grad = before
    return found


def gradient(output: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of a number in one leaf, zeros where it is not heard."""
    (found,) = gradients(output, [leaf])
    return torch.zeros_like(leaf) if found is None else found


def hearing(run: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[Tensor]:
    """How much output i of every item hears of every token, (B, N), for i = N - 1 down to 0, by the gradient."""
    x = x.detach().requires_grad_()
    out, direction = run(x), _random(x.shape[-1:], x)
    for i in reversed(range(x.shape[1])):
        heard = gradient((out[:, i] @ direction).sum(), x).abs().amax(-1)
        yield heard.index_fill(1, torch.tensor(i, device=x.device), 0.0)


def leaks(
    run: Callable[[Tensor], Tensor], x: Tensor, forbidden: Tensor, rows: Iterable[int]
) -> Iterator[tuple[float, str]]:
    """How much of what is forbidden reaches each output: by gradient, and by replacing it with loud noise.

    The noise finds what has no gradient: a rank, a choice, a detached statistic.

    Args:
        run: (B, N, D) to the same.
        x: the tokens.
        forbidden: Boolean (B, N, N): output i of an item must not hear of token j. A token's own query is no leak.
        rows: the outputs to try.
    """
    own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    forbidden = forbidden & ~own
    direction, noise = _random(x.shape[-1:], x), SHOUT * _random(x.shape, x)
    x = x.detach().requires_grad_()
    out = run(x)
    for i in rows:
        slope = gradient((out[:, i] @ direction).sum(), x)
        through = slope.abs().amax(-1) * forbidden[:, i]
        # With gradients, as above: without them a layer may draw its dropout in another way.
        changed = run(torch.where(forbidden[:, i, :, None], noise, x).detach()).detach()
        value = max(through.max().item(), difference(changed[:, i], out[:, i]))
        if not_finite(out[:, i], slope):
            yield math.nan, f"output {i} or its gradient is not finite"
        elif bool(through.any()):
            item, token = divmod(int(through.argmax()), x.shape[1])
            yield value, f"output {i} hears token {token} of item {item}"
        else:
            yield value, f"output {i} changes with the tokens that it may not look at"


def batched_leaks(
    run: Callable[[Tensor], Tensor], x: Tensor, forbidden: Tensor, rows: Sequence[int]
) -> tuple[float, str]:
    """As `leaks`, in one batch with an item for each output.

    Args:
        run: (B, N, D) to the same, for any B.
        x: one sequence, (1, N, D).
        forbidden: Boolean (1, N, N): the tokens that each output must not depend on.
        rows: the outputs to try.

    Returns:
        The largest leak, NaN where an output or a gradient is not finite, and where it was measured.
    """
    index, item = torch.tensor(rows, device=x.device), torch.arange(len(rows), device=x.device)
    masked = forbidden[0, index].index_put((item, index), torch.tensor(False, device=x.device))
    direction, noise = _random(x.shape[-1:], x), SHOUT * _random(x.shape, x)
    tokens = x.detach().repeat(len(rows), 1, 1).requires_grad_()
    out = run(tokens)[item, index]
    slope = gradient((out @ direction).sum(), tokens)
    # With gradients, as above: without them a layer may draw its dropout in another way.
    changed = run(torch.where(masked.unsqueeze(-1), noise, tokens).detach())[item, index].detach()
    if not_finite(out, slope):
        return math.nan, "an output or its gradient is not finite"
    through = slope.abs().amax(-1) * masked
    moved = (changed - out).abs().amax(-1) / out.abs().max().clamp(min=1.0)
    leak = torch.maximum(through.amax(-1), moved)
    return leak.max().item(), f"output {rows[int(leak.argmax())]} depends on tokens that are masked for it"


def seeded(run: Callable[[Tensor], Tensor], seed: int = 0) -> Callable[[Tensor], Tensor]:
    """``run`` with the same random numbers in every call, so that dropout drops the same."""

    def seeded_run(x: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return run(x)

    return seeded_run


def _random(shape: Sequence[int], like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(tuple(shape), dtype=torch.float64, generator=generator).to(like)
