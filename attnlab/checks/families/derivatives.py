"""Derivatives of a higher order, and in forward mode: right, or an error; never silently wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnlab.checks.capabilities import Broken, NotClaimed
from attnlab.checks.layer import EXACT, N, Subject, first_line
from attnlab.checks.probes import difference, gradients, said, worst
from attnlab.checks.registry import Measure, promise
from attnlab.masks import Mask, causal, padding, sliding_window

STEP = 1e-7
"""Small: the second derivative of a piecewise map, such as entmax, jumps where a weight becomes zero."""

CLOSE = 1e-5
"""How far a derivative may lie from the difference that such a step gives."""

ELEMENTS = 2**15
"""Queries times keys times heads from which on a layer may keep its dropout in another way."""


@promise("second derivatives are right or raise")
def second_order(subject: Subject) -> Measure:
    """The difference between a Hessian-vector product and finite differences of the gradient, in float64.

    In tokens and parameters, by ``autograd.grad`` and by ``backward(create_graph=True)``; an error counts as right.
    """
    _require_float64(subject)

    def measured() -> Iterator[tuple[float, str]]:
        for how, layer, x, mask in _cases(subject):
            leaves = _leaves(layer, x)
            expected = None
            for way, product in _PRODUCTS.items():
                try:
                    found = product(subject, layer, leaves, mask)
                except RuntimeError:
                    continue
                expected = expected or _finite_differences(subject, layer, leaves, mask)
                for (name, true), ours in zip(expected.items(), found, strict=True):
                    yield difference(ours, true), f"the second derivative in {name} by {way} ({how})"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecations of torch's own derivatives are not the layer's
        return worst(measured(), CLOSE)


@promise("higher derivatives under sdpa_kernel(MATH)", needs=("contract",))
def under_math(subject: Subject) -> Measure:
    """The difference between derivatives under ``sdpa_kernel(SDPBackend.MATH)`` and finite differences, in float64.

    Hessian-vector products as above, and forward mode by `torch.func.jvp` and `torch.autograd.forward_ad`.
    """
    _require_float64(subject)

    def measured() -> Iterator[tuple[float, str]]:
        for how, layer, x, mask in _cases(subject):
            leaves = _leaves(layer, x)
            with sdpa_kernel(SDPBackend.MATH):  # which draws its dropout in a way of its own
                expected = _finite_differences(subject, layer, leaves, mask)
            for way, product in _PRODUCTS.items():
                try:
                    with sdpa_kernel(SDPBackend.MATH):
                        found = product(subject, layer, leaves, mask)
                except Exception as error:
                    raise Broken(f"{first_line(error)} (the second derivative by {way}, {how})") from error
                for (name, true), ours in zip(expected.items(), found, strict=True):
                    yield difference(ours, true), f"the second derivative in {name} by {way} ({how})"
            direction = _direction(subject, x, 0)
            run = _seeded(subject, layer, mask)
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                expected_output = run(x)
                true = (run(x + STEP * direction) - run(x - STEP * direction)) / (2 * STEP)
            for way, jvp in (("torch.func.jvp", _by_func), ("forward_ad", _by_forward_ad)):
                try:
                    with sdpa_kernel(SDPBackend.MATH):
                        output, tangent = jvp(run, x.detach(), direction)
                except Exception as error:
                    raise Broken(f"{first_line(error)} ({way}, {how})") from error
                changed = difference(output, expected_output)
                if "dropout" in how and changed > CLOSE:
                    continue  # it has drawn another dropout
                yield max(changed, difference(tangent, true)), f"{way} ({how})"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecations of torch's own derivatives are not the layer's
        return worst(measured(), CLOSE)


def _require_float64(subject: Subject) -> None:
    if subject.exact != EXACT:
        raise NotClaimed("it rounds to float32, too coarse for a difference of gradients")


def _cases(subject: Subject) -> Iterator[tuple[str, nn.Module, Tensor, Mask | None]]:
    """The plain, the masked and the dropout path, at few tokens and at as many as change the path."""
    long = N
    while subject.num_heads * long * long < ELEMENTS:
        long += 1
    with_dropout = "dropout" in subject.claims and subject.can_choose("dropout")
    for length in (N, long):
        batch = 2 if length == N else 1
        masks: list[Mask | None] = [None]
        if "padding" in subject.claims:
            masks.append(padding(torch.tensor([length, length - 3][-batch:], device=subject.device)))
        if "arbitrary_mask" in subject.claims and length == N:
            masks += [sliding_window(3), causal() & sliding_window(3)]
        for causality in subject.causal_choices:
            for dropout in (0.0, subject.dropout) if with_dropout else (None,):
                options = {} if dropout is None else {"dropout": dropout}
                layer = subject.build(causality, train=True, **options)
                for mask in masks if not dropout or length == N else masks[:1]:
                    more = f"{length} tokens" + (f", dropout={dropout}" if dropout else "")
                    yield f"{more}, {said(causality, mask)}", layer, subject.tokens(batch, length), mask


def _leaves(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    return {"x": x.requires_grad_(), **{name: p for name, p in layer.named_parameters() if p.requires_grad}}


def _direction(subject: Subject, leaf: Tensor, number: int) -> Tensor:
    return subject.random(*leaf.shape, seed=40 + number)


def _seeded(subject: Subject, layer: nn.Module, mask: Mask | None) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same dropout in every call
        return subject(layer, x, mask)

    return run


def _value(subject: Subject, layer: nn.Module, x: Tensor, mask: Mask | None) -> Tensor:
    return _seeded(subject, layer, mask)(x).tanh().sum()


def _slopes(subject: Subject, layer: nn.Module, leaves: dict[str, Tensor], mask: Mask | None) -> list[Tensor]:
    tensors = list(leaves.values())
    found = gradients(_value(subject, layer, leaves["x"], mask), tensors)
    return [torch.zeros_like(leaf) if slope is None else slope for leaf, slope in zip(tensors, found, strict=True)]


def _by_grad(subject: Subject, layer: nn.Module, leaves: dict[str, Tensor], mask: Mask | None) -> list[Tensor]:
    """The Hessian times a direction in all leaves, by ``autograd.grad``."""
    tensors = list(leaves.values())
    value = _value(subject, layer, leaves["x"], mask)
    slopes = torch.autograd.grad(value, tensors, create_graph=True, allow_unused=True, materialize_grads=True)
    return _gradients_of(_along(subject, slopes), tensors)


def _by_backward(subject: Subject, layer: nn.Module, leaves: dict[str, Tensor], mask: Mask | None) -> list[Tensor]:
    """The same by ``backward(create_graph=True)``."""
    tensors = list(leaves.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reference cycle it warns of is broken below
        _value(subject, layer, leaves["x"], mask).backward(create_graph=True)
    slopes = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in tensors]
    for leaf in tensors:
        leaf.grad = None
    return _gradients_of(_along(subject, slopes), tensors)


def _along(subject: Subject, slopes: Sequence[Tensor]) -> Tensor:
    """The sum of all gradients along a direction each."""
    along = torch.zeros((), dtype=torch.float64, device=subject.device)
    for number, slope in enumerate(slopes):
        along = along + (slope * _direction(subject, slope, number)).sum()
    return along


def _gradients_of(along: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    if not along.requires_grad:
        return [torch.zeros_like(leaf) for leaf in tensors]
    return list(torch.autograd.grad(along, tensors, allow_unused=True, materialize_grads=True))


def _finite_differences(
    subject: Subject, layer: nn.Module, leaves: dict[str, Tensor], mask: Mask | None
) -> dict[str, Tensor]:
    """The change of the gradient along the same direction, over the step."""
    found = []
    for step in (STEP, -2 * STEP, STEP):
        with torch.no_grad():
            for number, leaf in enumerate(leaves.values()):
                leaf += step * _direction(subject, leaf, number)
        found.append(_slopes(subject, layer, leaves, mask))
    above, below, _ = found
    return {name: (up - down) / (2 * STEP) for name, up, down in zip(leaves, above, below, strict=True)}


def _by_func(run: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = torch.func.jvp(run, (x,), (direction,))  # type: ignore[assignment]
    return found


def _by_forward_ad(run: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(run(forward_ad.make_dual(x, direction)))
        return out.primal, torch.zeros_like(out.primal) if out.tangent is None else out.tangent


_PRODUCTS = {"autograd.grad": _by_grad, "backward": _by_backward}
