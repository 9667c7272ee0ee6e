"""Errors in values, gradients, second derivatives and low precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from plain import Plain, fails
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnlab.models.multihead import MultiAttention


@fails("matches_reference_outputs", replaces="_project_qkv", base=MultiAttention)
def scales_by_width(self: MultiAttention, *args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Divides the scores by the root of embed_dim in place of head_dim; the weights agree with the output."""
    Q, K, V = MultiAttention._project_qkv(self, *args, **options)
    return Q / math.sqrt(self.num_heads), K, V


@fails("matches_reference_outputs", replaces="_project_qkv", base=MultiAttention)
def interleaves_heads(self: MultiAttention, *args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Takes every third channel as a head; the weights agree with the output."""

    def interleave(t: Tensor) -> Tensor:
        return t.transpose(1, 2).flatten(2).unflatten(-1, (self.head_dim, self.num_heads)).permute(0, 3, 1, 2)

    Q, K, V = map(interleave, MultiAttention._project_qkv(self, *args, **options))
    return Q, K, V


@fails("matches_reference_gradients", replaces="_project_qkv", base=MultiAttention)
def detaches_keys(self: MultiAttention, *args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    Q, K, V = MultiAttention._project_qkv(self, *args, **options)
    return Q, K.detach(), V


class HalfGradient(torch.autograd.Function):
    """The identity, with half its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient / 2


@fails("gradients_match_finite_differences", replaces="before")
def halves_the_gradient(self: Plain, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return HalfGradient.apply(x)


@fails("gradients_match_finite_differences", replaces="before")
def halves_the_gradient_at_a_block(self: Plain, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return HalfGradient.apply(x) if x.shape[1] == 64 else x


class DetachedSoftmax(torch.autograd.Function):
    """A softmax whose backward pass treats the weights as constants."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        weights = scores.softmax(-1)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        weights = ctx.saved_tensors[0].detach()
        return weights * (gradient - (gradient * weights).sum(-1, keepdim=True))


class OnceDifferentiableSoftmax(DetachedSoftmax):
    """The same, but differentiating it again raises: allowed, except under the math backend."""

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (weights,) = ctx.saved_tensors
        return weights * (gradient - (gradient * weights).sum(-1, keepdim=True))


@fails("second_derivatives_exact_or_raise", replaces="normalize")
def drops_the_second_derivative(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """Treats the weights as constants in the backward pass."""
    return DetachedSoftmax.apply(scores) if mask is None else Plain.normalize(self, scores, mask)


@fails("second_derivatives_exact_or_raise", replaces="normalize")
def drops_the_second_derivative_of_large_dropout(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """The same in training with dropout, if there are enough weights for another backend."""
    is_large = scores[0].numel() >= 2**15
    if mask is None and is_large and self.training and self.dropout:
        return DetachedSoftmax.apply(scores)
    return Plain.normalize(self, scores, mask)


@fails("higher_derivatives_with_math_backend", replaces="normalize")
def differentiable_once(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """Raises for a second derivative and in forward mode, under every backend."""
    return OnceDifferentiableSoftmax.apply(scores) if mask is None else Plain.normalize(self, scores, mask)


@fails("low_precision_accuracy", "low_precision_error_growth", replaces="scores")
def accumulates_gates_in_low_precision(self: Plain, q: Tensor, k: Tensor) -> Tensor:
    """The scores decay with distance by a cumulative sum in the dtype of the tokens."""
    gates = q.new_full((k.shape[2],), -0.11)
    total = torch.stack([*gates.unbind()]).cumsum(0)
    return Plain.scores(self, q, k) + total[-q.shape[2] :, None] - total


@fails("low_precision_error_growth", replaces="attend")
def accumulates_values_in_low_precision(self: Plain, weights: Tensor, v: Tensor) -> Tensor:
    """Adds the values of the keys one after another in the dtype of the tokens."""
    if weights.dtype == torch.float64:
        return Plain.attend(self, weights, v)
    heads = torch.zeros_like(weights[..., :1] * v[..., :1, :])
    for j in range(v.shape[2]):
        heads = heads + (weights[..., j : j + 1] * v[:, :, j : j + 1]).to(heads.dtype)
    return self.output(heads.transpose(1, 2).flatten(2))


@fails("low_precision_accuracy", replaces="normalize")
def rounds_the_weights(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """Rounds the weights to float8 in half precision."""
    weights = Plain.normalize(self, scores, mask)
    return weights.to(torch.float8_e5m2).to(weights.dtype) if weights.dtype == torch.float16 else weights
