"""Second derivatives and forward mode are exact or raise; they are never silently wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnlab.checks.capabilities import NotApplicable
from attnlab.checks.layer_under_test import EXACT, LayerUnderTest, N
from attnlab.checks.probes import describe, difference, gradients, located, seeded
from attnlab.checks.registry import Values, check
from attnlab.masks import Mask, causal, padding, sliding_window

STEP = 1e-7
"""Small: the second derivative of a piecewise map, such as entmax, jumps where a weight becomes zero."""

TOLERANCE = 1e-5
"""The tolerance between a derivative and a finite difference with that step."""

ELEMENTS = 2**15
"""Queries times keys times heads above which a backend may store its dropout differently."""

Case = tuple[str, nn.Module, Tensor, Mask | None]
"""A description, a layer, its input and a mask."""


@check("second_derivatives_exact_or_raise", limit=TOLERANCE)
def second_order(case: LayerUnderTest) -> Values:
    """The difference between a Hessian-vector product and finite differences of the gradient, in float64.

    In tokens and parameters, by ``autograd.grad`` and by ``backward(create_graph=True)``; an error passes.
    """
    for where, layer, x, mask in _cases(case):
        leaves, expected = _leaves(layer, x), None
        for method, product in _PRODUCTS.items():
            try:
                with _no_warnings():
                    actual = product(case, layer, leaves, mask)
            except RuntimeError:
                continue
            expected = expected or _finite_differences(case, layer, leaves, mask)
            for name, slope in zip(leaves, actual, strict=True):
                yield difference(slope, expected[name]), f"the second derivative in {name} by {method} ({where})"


@check("higher_derivatives_with_math_backend", needs=("contract",), limit=TOLERANCE)
def with_math_backend(case: LayerUnderTest) -> Values:
    """The difference between derivatives under ``sdpa_kernel(SDPBackend.MATH)`` and finite differences, in float64.

    Hessian-vector products, and forward mode by `torch.func.jvp` and `torch.autograd.forward_ad`.
    """
    for where, layer, x, mask in _cases(case):
        with sdpa_kernel(SDPBackend.MATH), _no_warnings():
            leaves = _leaves(layer, x)
            expected = _finite_differences(case, layer, leaves, mask)
            for method, product in _PRODUCTS.items():
                with located(f"the second derivative by {method}, {where}"):
                    actual = product(case, layer, leaves, mask)
                for name, slope in zip(leaves, actual, strict=True):
                    yield difference(slope, expected[name]), f"the second derivative in {name} by {method} ({where})"
            direction, run = _direction(case, x, 0), _seeded(case, layer, mask)
            with torch.no_grad():
                output = run(x)
                slope = (run(x + STEP * direction) - run(x - STEP * direction)) / (2 * STEP)
            for method, jvp in (("torch.func.jvp", _jvp), ("forward_ad", _forward_ad)):
                with located(f"{method}, {where}"):
                    primal, tangent = jvp(run, x.detach(), direction)
                changed = difference(primal, output)
                if "dropout" not in where or changed <= TOLERANCE:  # otherwise other values were dropped
                    yield max(changed, difference(tangent, slope)), f"{method} ({where})"


def _no_warnings() -> warnings.catch_warnings[None]:
    """Of torch: deprecations, and a reference cycle in ``backward(create_graph=True)``, which is broken here."""
    return warnings.catch_warnings(action="ignore")


def _cases(case: LayerUnderTest) -> Iterator[Case]:
    """Calls without a mask, with masks and with dropout, at 7 tokens and at enough tokens for another backend."""
    if case.exact != EXACT:
        raise NotApplicable("it rounds to float32, which is too coarse for finite differences of gradients")
    long = N
    while case.num_heads * long * long < ELEMENTS:
        long += 1
    for length in (N, long):
        batch = 2 if length == N else 1
        masks: list[Mask | None] = [None]
        if "padding" in case.capabilities:
            masks.append(padding(torch.tensor([length, length - 3][-batch:], device=case.device)))
        if "arbitrary_mask" in case.capabilities and length == N:
            masks += [sliding_window(3), causal() & sliding_window(3)]
        for is_causal in case.causal_choices:
            with_dropout = case.dropout_options
            for options in [{"dropout": 0.0}, with_dropout] if with_dropout else [{}]:
                layer, dropout = case.build(is_causal, train=True, **options), options.get("dropout")
                for mask in masks if not dropout or length == N else masks[:1]:
                    where = f"{length} tokens" + (f", dropout={dropout}" if dropout else "")
                    yield f"{where}, {describe(is_causal, mask)}", layer, case.tokens(batch, length), mask


def _leaves(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"x": x.requires_grad_(), **{name: p for name, p in layer.named_parameters() if p.requires_grad}}


def _direction(case: LayerUnderTest, leaf: Tensor, number: int) -> Tensor:
    return case.random(*leaf.shape, seed=40 + number)


def _seeded(case: LayerUnderTest, layer: nn.Module, mask: Mask | None) -> Callable[[Tensor], Tensor]:
    return seeded(lambda x: case(layer, x, mask))


def _value(case: LayerUnderTest, layer: nn.Module, x: Tensor, mask: Mask | None) -> Tensor:
    return _seeded(case, layer, mask)(x).tanh().sum()


def _by_grad(case: LayerUnderTest, layer: nn.Module, leaves: dict[str, Tensor], mask: Mask | None) -> list[Tensor]:
    """The Hessian times a direction in all leaves, by ``autograd.grad``."""
    tensors = list(leaves.values())
    value = _value(case, layer, leaves["x"], mask)
    slopes = torch.autograd.grad(value, tensors, create_graph=True, allow_unused=True, materialize_grads=True)
    return _slopes_along(case, slopes, tensors)


def _by_backward(case: LayerUnderTest, layer: nn.Module, leaves: dict[str, Tensor], mask: Mask | None) -> list[Tensor]:
    """The same by ``backward(create_graph=True)``."""
    tensors = list(leaves.values())
    _value(case, layer, leaves["x"], mask).backward(create_graph=True)
    slopes = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in tensors]
    for leaf in tensors:
        leaf.grad = None
    return _slopes_along(case, slopes, tensors)


def _slopes_along(case: LayerUnderTest, slopes: Sequence[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The gradients of the sum of ``slopes``, each along its direction."""
    along = torch.zeros((), dtype=torch.float64, device=case.device)
    for number, slope in enumerate(slopes):
        along = along + (slope * _direction(case, slope, number)).sum()
    if not along.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(along, leaves, allow_unused=True, materialize_grads=True))


def _finite_differences(
    case: LayerUnderTest, layer: nn.Module, leaves: dict[str, Tensor], mask: Mask | None
) -> dict[str, Tensor]:
    """The change of the gradients along the same direction, divided by the step."""
    slopes = []
    for step in (STEP, -2 * STEP, STEP):
        with torch.no_grad():
            for number, leaf in enumerate(leaves.values()):
                leaf += step * _direction(case, leaf, number)
        slopes.append(gradients(_value(case, layer, leaves["x"], mask), list(leaves.values())))
    above, below, _ = slopes
    return {name: (up - down) / (2 * STEP) for name, up, down in zip(leaves, above, below, strict=True)}


def _jvp(run: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = torch.func.jvp(run, (x,), (direction,))  # type: ignore[assignment]
    return result


def _forward_ad(run: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(run(forward_ad.make_dual(x, direction)))
        return out.primal, torch.zeros_like(out.primal) if out.tangent is None else out.tangent


_PRODUCTS = {"autograd.grad": _by_grad, "backward": _by_backward}
