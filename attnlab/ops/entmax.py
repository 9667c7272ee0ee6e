"""α-entmax: a softmax with exact zeros, by Newton's method for the threshold.

Source: Peters et al. 2019, "Sparse Sequence-to-Sequence Models", section 3.

Axes: M keys.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attnlab.ops.rowwise import at_least_float32
from attnlab.utils.tracing import can_inspect_values

TRACED_STEPS = 16
"""Newton steps in a traced graph. At most 11 were needed for 8,192 keys (normal, uniform and heavy-tailed scores)."""

HALVINGS = 60
"""Bisection steps for α > 2, in float64: below 2**-60 a threshold does not change."""

BLOCK = 16
"""Keys that the search for a starting point represents by their largest score."""


def entmax(scores: Float[Tensor, "... M"], alpha: float, permitted: Tensor | None = None) -> Float[Tensor, "... M"]:
    """Return the weights ``[(α - 1) score - τ]₊^(1 / (α - 1))``, with τ such that each row sums to one.

    Float16 and bfloat16 are computed in float32. Derivatives of every order are those of the nonzero weights.

    Args:
        scores: (..., M).
        alpha: above 1 (the limit is softmax), at most 4.
        permitted: Boolean, broadcastable to the scores; the other weights are zero. A fully masked row is zero.
    """
    # torch.compile does not support a custom jvp.
    function = _Entmax if torch.compiler.is_compiling() else _EntmaxWithForwardMode
    weights: Tensor = function.apply(at_least_float32(scores), permitted, alpha)  # type: ignore[no-untyped-call]
    return weights.to(scores.dtype)


class _Entmax(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, permitted: Tensor | None, alpha: float) -> Tensor:
        if not scores.shape[-1]:
            return scores.clone()
        if permitted is None:
            z = scores.clone()
        else:  # a minimum takes a quarter of the time of masked_fill
            z = torch.minimum(scores, torch.where(permitted, torch.inf, -torch.inf).to(scores.dtype))
        if alpha > 2 and z.device.type != "mps":  # an exponent below one magnifies rounding errors near zero
            z = z.double()
        # Finite, so that a fully masked row does not become -inf minus -inf.
        largest = z.amax(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).min)
        z.sub_(largest).mul_(alpha - 1)
        shift = _bisect(z, alpha) if alpha > 2 else _solve(z, alpha, 4 * torch.finfo(z.dtype).eps)
        weights = _power(z, shift, alpha)
        total = weights.sum(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        return weights.mul_(total.reciprocal()).to(scores.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, float], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.alpha = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        return _times_jacobian(gradient, weights, ctx.alpha), None, None


class _EntmaxWithForwardMode(_Entmax):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, float], output: Tensor) -> None:
        _Entmax.setup_context(ctx, inputs, output)
        ctx.save_for_forward(output)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (weights,) = ctx.saved_tensors
        return _times_jacobian(tangent, weights, ctx.alpha)


def _times_jacobian(
    vector: Float[Tensor, "... M"], weights: Float[Tensor, "... M"], alpha: float
) -> Float[Tensor, "... M"]:
    """The product with the Jacobian, which is symmetric (Peters et al. 2019, proposition 2)."""
    # A base of 1 in place of 0, whose power would be infinite and make a second derivative 0 · inf.
    slope = torch.where(weights > 0, weights.masked_fill(weights == 0, 1.0) ** (2 - alpha), 0.0)
    product = vector * slope
    total = slope.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return product - product.sum(-1, keepdim=True) / total * slope


def _solve(z: Float[Tensor, "... M"], alpha: float, tolerance: float) -> Float[Tensor, "... 1"]:
    """τ + 1 for α ≤ 2, by Newton's method on the p-norm ``‖[z - τ]₊‖_p = 1`` with p = 1 / (α - 1).

    The norm is convex and decreasing in τ, so steps from the left never pass the root, and the product of residual and
    slope falls by a factor of 4 per step: ``bits / 2 + log2 M`` steps are enough.
    """
    shift = torch.zeros_like(z[..., :1])
    if not can_inspect_values(z):
        for _ in range(TRACED_STEPS):
            shift = shift + _newton_step(z, shift, alpha)
        return shift
    M = z.shape[-1]
    if M >= 4 * BLOCK:  # the root for a subset of the keys is at or below the root for all of them
        largest = z[..., : M // BLOCK * BLOCK].unflatten(-1, (BLOCK, -1)).amax(-2)
        shift = _solve(largest, alpha, 2**-6)
    for _ in range(30 + M.bit_length()):
        step = _newton_step(z, shift, alpha)
        shift = shift + step
        if step.numel() == 0 or step.max() <= tolerance * (alpha - 1):
            break
    return shift


def _newton_step(z: Float[Tensor, "... M"], shift: Float[Tensor, "... 1"], alpha: float) -> Float[Tensor, "... 1"]:
    """The step to the right; 0 where the sum is below 1, such as in a fully masked row."""
    tiny = torch.finfo(z.dtype).tiny
    if alpha == 1.5:
        excess = (z - (shift - 1)).relu_()
        norm = torch.linalg.vector_norm(excess, dim=-1, keepdim=True)
        return (norm * (norm - 1) / excess.sum(-1, keepdim=True).clamp_(min=tiny)).clamp_(min=0)
    weights = _power(z, shift, alpha)
    total = weights.sum(-1, keepdim=True).clamp_(min=tiny)
    slope = weights.sign() if alpha == 2 else weights ** (2 - alpha)
    step = -torch.expm1((1 - alpha) * total.log()) * total / slope.sum(-1, keepdim=True).clamp_(min=tiny)
    return step.clamp_(min=0)


def _bisect(z: Float[Tensor, "... M"], alpha: float) -> Float[Tensor, "... 1"]:
    """τ + 1 for α > 2, where the sum of the weights is not convex in τ.

    The sum falls from at least 1 at τ = -1 to at most 1 at τ = 0.
    """
    low = torch.zeros_like(z[..., :1])
    step = 1.0
    for _ in range(HALVINGS):
        step = step / 2
        middle = low + step
        low = torch.where(_power(z, middle, alpha).sum(-1, keepdim=True) >= 1, middle, low)
    return low


def _power(z: Float[Tensor, "... M"], shift: Float[Tensor, "... 1"], alpha: float) -> Float[Tensor, "... M"]:
    """``[z - τ]₊^(1 / (α - 1))`` for a shift of τ + 1."""
    if alpha < 1.5:  # as a power, a rounding error of the base near 1 would be 1 / (α - 1) times as large
        return (z - shift).clamp_(min=-1).log1p_().div_(alpha - 1).exp_()
    excess = (z - (shift - 1)).relu_()
    if alpha == 2:
        return excess
    return excess.square_() if alpha == 1.5 else excess ** (1 / (alpha - 1))
