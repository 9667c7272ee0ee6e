"""The gradient is right, and its derivative is not."""

from __future__ import annotations

from typing import Any

import torch
from plain import Plain
from torch import Tensor
from torch.autograd.function import once_differentiable

from broken._twins import breaks


class DetachedSoftmax(torch.autograd.Function):
    """A softmax whose backward pass takes the weights for constants."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        weights = scores.softmax(-1)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        weights = ctx.saved_tensors[0].detach()
        return weights * (gradient - (gradient * weights).sum(-1, keepdim=True))


class SoftmaxOnce(DetachedSoftmax):
    """The same, which raises when it is differentiated again: allowed, but not under the math backend."""

    @staticmethod
    @once_differentiable  # type: ignore[misc]
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (weights,) = ctx.saved_tensors
        return weights * (gradient - (gradient * weights).sum(-1, keepdim=True))


@breaks("second derivatives are right or raise")
class DropsTheSecondDerivative(Plain):
    """Treats the weights as constants in the backward pass."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        return DetachedSoftmax.apply(scores) if mask is None else super().normalize(scores, mask)


@breaks("second derivatives are right or raise")
class DropsTheSecondDerivativeOfLargeDropout(Plain):
    """The same in training with dropout, from as many weights on as change the path."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        large = scores[0].numel() >= 2**15
        if mask is None and large and self.training and self.dropout:
            return DetachedSoftmax.apply(scores)
        return super().normalize(scores, mask)


@breaks("higher derivatives under sdpa_kernel(MATH)")
class DifferentiatesOnce(Plain):
    """Raises for a second derivative and in forward mode, under every backend."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        return SoftmaxOnce.apply(scores) if mask is None else super().normalize(scores, mask)
