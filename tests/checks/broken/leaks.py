"""Something is heard that must not be, or nothing is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attnlab.engines.softmax import softmax_weights
from attnlab.masks import BoundMask, as_mask, from_tensor
from attnlab.models.multihead import MultiAttention
from broken._twins import attend, breaks


@breaks("tokens reach each other")
class Deaf(MultiAttention):
    """Every token hears itself alone."""

    def _weights(self, x: Tensor, mask: Any, bias: Any = None, context: Any = None) -> Tensor:
        weights = super()._weights(x, mask, bias, context)
        return torch.eye(*weights.shape[-2:]).to(weights).expand_as(weights)

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        return attend(self, self._weights(x, mask, bias, context), x, context)


@breaks("causal hears no future")
class LeaksByOne(MultiAttention):
    """Its triangle is one diagonal too high."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        if mask is not None and mask.is_causal:
            N = x.shape[1]
            mask = from_tensor(torch.ones(N, N, dtype=torch.bool).tril(1)).bind(N)
        return super()._forward(x, mask, bias, context)


@breaks("causal hears no future")
class LeaksAcrossBlocks(MultiAttention):
    """Is causal in blocks of 64, and forgets to be beyond the first."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        if mask is not None and mask.is_causal:
            place = torch.arange(x.shape[1])
            seen = (place <= place[:, None]) | ((place // 64 == place[:, None] // 64) & (place >= 64))
            mask = from_tensor(seen).bind(x.shape[1])
        return super()._forward(x, mask, bias, context)


@breaks("causal hears no future under a mask")
class DropsCausal(MultiAttention):
    """A mask takes the place of causal."""

    def _admit(self, x: Tensor, mask: Any, **optional: Any) -> Any:
        if mask is None:
            return super()._admit(x, mask, **optional)
        causal, self.causal = self.causal, False
        try:
            return super()._admit(x, mask, **optional)
        finally:
            self.causal = causal


@breaks("masked keys are never heard")
class InvertsTheMask(MultiAttention):
    """Takes True to mean *may not look*."""

    def _admit(self, x: Tensor, mask: Any, **optional: Any) -> Any:
        return super()._admit(x, None if mask is None else ~as_mask(mask), **optional)


@breaks("masked keys are never heard")
class MasksSoftly(MultiAttention):
    """Takes ten off a forbidden score, where it should take all."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        Q, K, _ = self._project(x, context)
        if mask is not None:
            softly = -10.0 * (~mask.tensor()).to(x.dtype)
            bias = softly if bias is None else bias + softly
        return attend(self, softmax_weights(Q, K, None, bias), x, context)


@breaks("padding is never heard")
class PadsOnTheRight(MultiAttention):
    """Reads a mask as a count of keys, and takes the first so many."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        if mask is not None and not mask.is_causal:
            counts = mask.tensor().sum(-1, keepdim=True)
            mask = from_tensor(torch.arange(mask.keys) < counts).bind(mask.queries, mask.keys)
        return super()._forward(x, mask, bias, context)


@breaks("padding is as if absent")
class ScalesByLength(MultiAttention):
    """Sharpens the scores with the length, padding included."""

    def _project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project(x, context)
        return Q * math.log(1 + x.shape[1]), K, V


@breaks("other batch items are never heard")
class NormalisesOverTheBatch(MultiAttention):
    """Subtracts the batch's mean, in training."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True) if self.training else x, **given)
