"""Errors in values, gradients, second derivatives and low precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from plain import Plain
from torch import Tensor
from torch.autograd.function import once_differentiable

from attnlab.models.multihead import MultiAttention
from faulty._registry import fails


@fails("matches_reference_outputs")
class ScalesByWidth(MultiAttention):
    """Divides the scores by the root of embed_dim in place of head_dim; the weights agree with the output."""

    def _project_qkv(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project_qkv(*args, **options)
        return Q / math.sqrt(self.num_heads), K, V


@fails("matches_reference_outputs")
class InterleavesHeads(MultiAttention):
    """Takes every third channel as a head; the weights agree with the output."""

    def _project_qkv(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        def interleave(t: Tensor) -> Tensor:
            return t.transpose(1, 2).flatten(2).unflatten(-1, (self.head_dim, self.num_heads)).permute(0, 3, 1, 2)

        Q, K, V = map(interleave, super()._project_qkv(*args, **options))
        return Q, K, V


@fails("matches_reference_gradients")
class DetachesKeys(MultiAttention):
    """The keys get no gradient."""

    def _project_qkv(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project_qkv(*args, **options)
        return Q, K.detach(), V


class HalfGradient(torch.autograd.Function):
    """The identity, with half its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient / 2


@fails("gradients_match_finite_differences")
class HalvesTheGradient(Plain):
    """Returns half the gradient of the tokens."""

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return HalfGradient.apply(x)


@fails("gradients_match_finite_differences")
class HalvesTheGradientAtABlock(Plain):
    """The same at exactly 64 tokens."""

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
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


@fails("second_derivatives_exact_or_raise")
class DropsTheSecondDerivative(Plain):
    """Treats the weights as constants in the backward pass."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        return DetachedSoftmax.apply(scores) if mask is None else super().normalize(scores, mask)


@fails("second_derivatives_exact_or_raise")
class DropsTheSecondDerivativeOfLargeDropout(Plain):
    """The same in training with dropout, if there are enough weights for another backend."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        is_large = scores[0].numel() >= 2**15
        if mask is None and is_large and self.training and self.dropout:
            return DetachedSoftmax.apply(scores)
        return super().normalize(scores, mask)


@fails("higher_derivatives_with_math_backend")
class DifferentiableOnce(Plain):
    """Raises for a second derivative and in forward mode, under every backend."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        return OnceDifferentiableSoftmax.apply(scores) if mask is None else super().normalize(scores, mask)


@fails("low_precision_accuracy", "low_precision_error_growth")
class AccumulatesGatesInLowPrecision(Plain):
    """The scores decay with distance by a cumulative sum in the dtype of the tokens."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        gates = q.new_full((k.shape[2],), -0.11)
        total = torch.stack([*gates.unbind()]).cumsum(0)
        return super().scores(q, k) + total[-q.shape[2] :, None] - total


@fails("low_precision_error_growth")
class AccumulatesValuesInLowPrecision(Plain):
    """Adds the values of the keys one after another in the dtype of the tokens."""

    def attend(self, weights: Tensor, v: Tensor) -> Tensor:
        if weights.dtype == torch.float64:
            return super().attend(weights, v)
        heads = torch.zeros_like(weights[..., :1] * v[..., :1, :])
        for j in range(v.shape[2]):
            heads = heads + (weights[..., j : j + 1] * v[:, :, j : j + 1]).to(heads.dtype)
        return self.output(heads.transpose(1, 2).flatten(2))


@fails("low_precision_accuracy")
class RoundsTheWeights(Plain):
    """Rounds the weights to float8 in half precision."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        weights = super().normalize(scores, mask)
        return weights.to(torch.float8_e5m2).to(weights.dtype) if weights.dtype == torch.float16 else weights
