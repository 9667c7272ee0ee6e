"""Errors by which forbidden tokens change an output, or no token does."""

from __future__ import annotations

import math
from typing import Any

import torch
from plain import Plain
from torch import Tensor

from attnlab.masks import as_mask, from_cu_seqlens, from_tensor
from attnlab.models.multihead import MultiAttention
from faulty._registry import fails

SEGMENTS = type(from_cu_seqlens(torch.tensor([0, 1])))


def next_tokens(x: Tensor) -> Tensor:
    """A hundredth of the token after each token."""
    return 0.01 * torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)


@fails("tokens_interact")
class AttendsToItselfOnly(Plain):
    """Every token attends to itself only."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        return torch.eye(*scores.shape[-2:]).to(scores).expand_as(scores)


@fails("no_future_leakage")
class CausalMaskOffByOne(Plain):
    """The causal triangle is one diagonal too high."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        if mask is not None and mask.is_causal:
            length = scores.shape[-1]
            mask = from_tensor(torch.ones(length, length, dtype=torch.bool).tril(1)).bind(length)
        return super().normalize(scores, mask)


@fails("no_future_leakage")
class LeaksAcrossBlocks(Plain):
    """Is causal in the first block of 64 only."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        if mask is not None and mask.is_causal:
            position = torch.arange(scores.shape[-1])
            block = position // 64
            allowed = (position <= position[:, None]) | ((block == block[:, None]) & (position >= 64))
            mask = from_tensor(allowed).bind(len(position))
        return super().normalize(scores, mask)


@fails("no_future_leakage")
class LeaksInTraining(Plain):
    """Adds a part of the next token in training."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out + next_tokens(x) if self.training and self.causal else out


@fails("no_future_leakage")
class LeaksWithDropout(Plain):
    """Adds a part of the next token in training with dropout."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out + next_tokens(x) if self.training and self.dropout and self.causal else out


@fails("no_future_leakage")
class LeaksAtMultiplesOfABlock(Plain):
    """Adds a part of the next token if the length is a multiple of 64."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out + next_tokens(x) if x.shape[1] % 64 == 0 and self.causal else out


@fails("no_future_leakage_with_mask")
class LeaksWithMasksAtABlock(Plain):
    """Adds a part of the next token at 64 tokens with a mask."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out + next_tokens(x) if x.shape[1] == 64 and self.causal and not mask.is_causal else out


@fails("no_future_leakage_with_mask")
class DropsCausalWithMask(Plain):
    """A mask replaces the causal mask."""

    def forward(self, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
        is_causal, self.causal = self.causal, self.causal and mask is None
        try:
            return super().forward(x, mask=mask, **options)
        finally:
            self.causal = is_causal


@fails("no_masked_key_leakage")
class InvertsTheMask(Plain):
    """Reads True as *masked*."""

    def forward(self, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
        return super().forward(x, mask=None if mask is None else ~as_mask(mask), **options)


@fails("no_masked_key_leakage")
class MasksSoftly(Plain):
    """Subtracts 10 from the score of a masked key."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        return (scores if mask is None else scores - 10.0 * ~mask.tensor()).softmax(-1)


@fails("no_masked_key_leakage")
class LeaksGradientsToMaskedKeys(Plain):
    """Adds zero to the output and a gradient to all tokens, in training with a mask."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out + (x - x.detach()).sum(1, keepdim=True) if self.training and mask is not None else out


@fails("no_padding_leakage")
class AssumesPaddingOnTheRight(Plain):
    """Reads a mask as a number of keys and attends to the first ones."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        if mask is not None and not mask.is_causal:
            counts = mask.tensor().sum(-1, keepdim=True)
            mask = from_tensor(torch.arange(mask.keys) < counts).bind(mask.queries, mask.keys)
        return super().normalize(scores, mask)


@fails("padding_invariance")
class ScalesByLength(Plain):
    """Scales the scores with the length, padding included."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return super().scores(q, k) * math.log(1 + k.shape[2])


@fails("causal_prefix_invariance")
class ScalesByTotalLength(Plain):
    """Scales causal outputs with the length of the whole sequence."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out * (1 + 0.001 * x.shape[1]) if self.causal and cache is None else out


@fails("causal_prefix_invariance", "padding_invariance")
class WrongAtABlock(Plain):
    """Gives other outputs at exactly 64 tokens."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out * (1.01 if x.shape[1] == 64 else 1.0)


@fails("no_batch_leakage")
class NormalizesOverTheBatch(Plain):
    """Subtracts the mean over the batch in training."""

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return x - x.mean(0, keepdim=True) if self.training else x


@fails("batch_invariance")
class SharesTheFirstMask(Plain):
    """Uses the mask of the first item for every item, in batches above 8."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        if mask is None or len(scores) <= 8:
            return super().normalize(scores, mask)
        first = mask.tensor()[:1]
        return scores.masked_fill(~first, -1e300).softmax(-1).masked_fill(~first, 0.0)


@fails("batch_invariance")
class SharesTheFirstContext(Plain):
    """Attends to the context of the first item from every item, in batches above 8."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        shared = context[:1].expand_as(context) if context is not None and len(x) > 8 else context
        return super().project(x, shared)


@fails("nan_in_padding_is_ignored")
class MultipliesByZero(Plain):
    """Multiplies masked tokens by zero; zero times NaN is NaN."""

    def forward(self, x: Tensor, *, context: Any = None, **options: Any) -> Tensor:
        content = 0.0 * (x if context is None else context).sum(1, keepdim=True)
        return super().forward(x, context=context, **options) + content


@fails("packed_sequences_are_independent")
class IgnoresSegments(Plain):
    """Treats packed sequences as one."""

    def forward(self, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
        return super().forward(x, mask=None if isinstance(mask, SEGMENTS) else mask, **options)


@fails("left_padding_invariance", "permutation_equivariance")
class AddsThePosition(Plain):
    """Adds the position in the row, padding included, to every token."""

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        start = 0 if cache is None else cache.num_seen
        return x + 0.1 * torch.arange(start, start + x.shape[1], device=x.device)[:, None]


@fails("padding_with_masked_queries")
class AddsThePositionAfterPacking(MultiAttention):
    """Adds the position to every token after the padding was removed."""

    def _forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return super()._forward(x + 0.1 * torch.arange(x.shape[1], device=x.device)[:, None], *args, **options)
