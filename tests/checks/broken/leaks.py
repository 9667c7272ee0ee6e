"""Something is heard that must not be, or nothing is."""

from __future__ import annotations

import math
from typing import Any

import torch
from plain import Plain
from torch import Tensor

from attnlab.masks import BoundMask, as_mask, from_tensor
from attnlab.models.multihead import MultiAttention
from attnlab.ops.softmax import softmax_weights
from broken._twins import attend, breaks


@breaks("tokens reach each other")
class Deaf(MultiAttention):
    """Every token hears itself alone."""

    def _attention_weights(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None) -> Tensor:
        weights = super()._attention_weights(x, mask, attn_bias, context)
        return torch.eye(*weights.shape[-2:]).to(weights).expand_as(weights)

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        return attend(self, self._attention_weights(x, mask, attn_bias, context), x, context)


@breaks("causal hears no future")
class LeaksByOne(MultiAttention):
    """Its triangle is one diagonal too high."""

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        if mask is not None and mask.is_causal:
            N = x.shape[1]
            mask = from_tensor(torch.ones(N, N, dtype=torch.bool).tril(1)).bind(N)
        return super()._forward(x, mask, attn_bias, context)


@breaks("causal hears no future")
class LeaksAcrossBlocks(MultiAttention):
    """Is causal in blocks of 64, and forgets to be beyond the first."""

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        if mask is not None and mask.is_causal:
            place = torch.arange(x.shape[1])
            seen = (place <= place[:, None]) | ((place // 64 == place[:, None] // 64) & (place >= 64))
            mask = from_tensor(seen).bind(x.shape[1])
        return super()._forward(x, mask, attn_bias, context)


@breaks("causal hears no future under a mask")
class DropsCausal(MultiAttention):
    """A mask takes the place of causal."""

    def _validate(self, x: Tensor, mask: Any, **optional: Any) -> Any:
        if mask is None:
            return super()._validate(x, mask, **optional)
        causal, self.causal = self.causal, False
        try:
            return super()._validate(x, mask, **optional)
        finally:
            self.causal = causal


@breaks("masked keys are never heard")
class InvertsTheMask(MultiAttention):
    """Takes True to mean *may not look*."""

    def _validate(self, x: Tensor, mask: Any, **optional: Any) -> Any:
        return super()._validate(x, None if mask is None else ~as_mask(mask), **optional)


@breaks("masked keys are never heard")
class MasksSoftly(MultiAttention):
    """Takes ten off a forbidden score, where it should take all."""

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        Q, K, _ = self._project_qkv(x, context)
        if mask is not None:
            softly = -10.0 * (~mask.tensor()).to(x.dtype)
            attn_bias = softly if attn_bias is None else attn_bias + softly
        return attend(self, softmax_weights(Q, K, None, attn_bias), x, context)


@breaks("padding is never heard")
class PadsOnTheRight(MultiAttention):
    """Reads a mask as a count of keys, and takes the first so many."""

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        if mask is not None and not mask.is_causal:
            counts = mask.tensor().sum(-1, keepdim=True)
            mask = from_tensor(torch.arange(mask.keys) < counts).bind(mask.queries, mask.keys)
        return super()._forward(x, mask, attn_bias, context)


@breaks("padding is as if absent")
class ScalesByLength(MultiAttention):
    """Sharpens the scores with the length, padding included."""

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project_qkv(x, context)
        return Q * math.log(1 + x.shape[1]), K, V


@breaks("other batch items are never heard")
class NormalisesOverTheBatch(MultiAttention):
    """Subtracts the batch's mean, in training."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True) if self.training else x, **given)


def next_tokens(x: Tensor) -> Tensor:
    """A little of the token that follows each token."""
    return 0.01 * torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)


@breaks("causal hears no future")
class LeaksInTraining(Plain):
    """Adds a little of the next token in training."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        out = super()._forward(x, mask, **given)
        return out + next_tokens(x) if self.training and self.causal else out


@breaks("causal hears no future")
class LeaksInDropout(Plain):
    """Adds a little of the next token in training with dropout."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        out = super()._forward(x, mask, **given)
        return out + next_tokens(x) if self.training and self.dropout and self.causal else out


@breaks("causal hears no future")
class LeaksAtMultiplesOfABlock(Plain):
    """Adds a little of the next token where the length is a multiple of 64."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        out = super()._forward(x, mask, **given)
        return out + next_tokens(x) if x.shape[1] % 64 == 0 and self.causal else out


@breaks("causal hears no future under a mask")
class LeaksUnderMasksAtABlock(Plain):
    """The same, under a mask alone."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        out = super()._forward(x, mask, **given)
        return out + next_tokens(x) if x.shape[1] == 64 and self.causal and not mask.is_causal else out


@breaks("masked keys are never heard")
class SendsGradientsToMaskedKeys(Plain):
    """Adds nothing to the output and something to the gradient, in training under a mask."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        out = super()._forward(x, mask, **given)
        return out + (x - x.detach()).sum(1, keepdim=True) if self.training and mask is not None else out


@breaks("a causal prefix is computed alone")
class ScalesByTheLengthToCome(Plain):
    """Scales causal outputs with the length of the whole sequence."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        out = super()._forward(x, mask, **given)
        return out * (1 + 0.001 * x.shape[1]) if self.causal and "cache" not in given else out


@breaks("a causal prefix is computed alone")
@breaks("padding is as if absent")
class WrongAtABlock(Plain):
    """Gives other numbers at exactly 64 tokens."""

    def _forward(self, x: Tensor, mask: Any, **given: Any) -> Tensor:
        return super()._forward(x, mask, **given) * (1.01 if x.shape[1] == 64 else 1.0)


@breaks("items of a large batch are computed alone")
class SharesTheFirstMask(Plain):
    """Uses the mask of the first item for every item, in batches above 8."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        if mask is None or len(scores) <= 8:
            return super().normalize(scores, mask)
        first = mask.tensor()[:1]
        return scores.masked_fill(~first, -1e300).softmax(-1).masked_fill(~first, 0.0)


@breaks("items of a large batch are computed alone")
class SharesTheFirstContext(Plain):
    """Attends to the context of the first item from every item, in batches above 8."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        shared = context[:1].expand_as(context) if context is not None and len(x) > 8 else context
        return super().project(x, shared)


@breaks("NaN in padding reaches nothing")
class MultipliesByZero(Plain):
    """Multiplies the values of masked keys by zero; zero times NaN is NaN."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        content = 0.0 * (x if given.get("context") is None else given["context"]).sum(1, keepdim=True)
        return super().forward(x, mask=mask, **given) + content
