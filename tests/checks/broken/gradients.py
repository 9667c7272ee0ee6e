"""The numbers, or their slopes, are off."""

from __future__ import annotations

from typing import Any

import torch
from plain import Plain
from torch import Tensor

from attnlab.models.multihead import MultiAttention
from broken._twins import attend, breaks
from broken.rows import NanOnEmptyRows


class WrongSlope(torch.autograd.Function):
    """The identity, with half its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient / 2


@breaks("gradients match finite differences")
class HalvesTheSlope(MultiAttention):
    """Its own backward pass forgets a factor."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(WrongSlope.apply(x), **given)


@breaks("extreme scores stay finite")
class OverflowsExp(NanOnEmptyRows):
    """The softmax without taking off the highest score first."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        x, bound, given = self._validate(x, mask, **given)
        powers = self.scores(x, given.get("attn_bias"), given.get("context")).exp()
        if bound is not None:
            powers = powers.masked_fill(~bound.tensor(), 0.0)
        return attend(self, powers / powers.sum(-1, keepdim=True), x, given.get("context"))


@breaks("gradients match finite differences")
class HalvesTheSlopeAtABlock(Plain):
    """The same at exactly 64 tokens."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        return super()._forward(WrongSlope.apply(x) if x.shape[1] == 64 else x, mask, **given)
