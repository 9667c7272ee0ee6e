"""Errors by which forbidden tokens change an output, or no token does."""

from __future__ import annotations

import math
from typing import Any

import torch
from plain import Plain, fails
from torch import Tensor

from attnlab.masks import as_mask, from_cu_seqlens, from_tensor
from attnlab.models.multihead import MultiAttention

SEGMENTS = type(from_cu_seqlens(torch.tensor([0, 1])))


def next_tokens(x: Tensor) -> Tensor:
    """A hundredth of the token after each token."""
    return 0.01 * torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)


@fails("tokens_interact", replaces="normalize")
def attends_to_itself_only(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    return torch.eye(*scores.shape[-2:]).to(scores).expand_as(scores)


@fails("no_future_leakage", replaces="normalize")
def causal_mask_off_by_one(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """The causal triangle is one diagonal too high."""
    if mask is not None and mask.is_causal:
        length = scores.shape[-1]
        mask = from_tensor(torch.ones(length, length, dtype=torch.bool).tril(1)).bind(length)
    return Plain.normalize(self, scores, mask)


@fails("no_future_leakage", replaces="normalize")
def leaks_across_blocks(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """Is causal in the first block of 64 only."""
    if mask is not None and mask.is_causal:
        position = torch.arange(scores.shape[-1])
        block = position // 64
        allowed = (position <= position[:, None]) | ((block == block[:, None]) & (position >= 64))
        mask = from_tensor(allowed).bind(len(position))
    return Plain.normalize(self, scores, mask)


@fails("no_future_leakage", replaces="after")
def leaks_in_training(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out + next_tokens(x) if self.training and self.causal else out


@fails("no_future_leakage", replaces="after")
def leaks_with_dropout(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out + next_tokens(x) if self.training and self.dropout and self.causal else out


@fails("no_future_leakage", replaces="after")
def leaks_at_multiples_of_a_block(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out + next_tokens(x) if x.shape[1] % 64 == 0 and self.causal else out


@fails("no_future_leakage_with_mask", replaces="after")
def leaks_with_masks_at_a_block(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out + next_tokens(x) if x.shape[1] == 64 and self.causal and not mask.is_causal else out


@fails("no_future_leakage_with_mask", replaces="forward")
def drops_causal_with_mask(self: Plain, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
    """A mask replaces the causal mask."""
    is_causal, self.causal = self.causal, self.causal and mask is None
    try:
        return Plain.forward(self, x, mask=mask, **options)
    finally:
        self.causal = is_causal


@fails("no_masked_key_leakage", replaces="forward")
def inverts_the_mask(self: Plain, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
    return Plain.forward(self, x, mask=None if mask is None else ~as_mask(mask), **options)


@fails("no_masked_key_leakage", replaces="normalize")
def masks_softly(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """Subtracts 10 from the score of a masked key."""
    return (scores if mask is None else scores - 10.0 * ~mask.tensor()).softmax(-1)


@fails("no_masked_key_leakage", replaces="after")
def leaks_gradients_to_masked_keys(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    """Adds zero to the output and a gradient to all tokens, in training with a mask."""
    return out + (x - x.detach()).sum(1, keepdim=True) if self.training and mask is not None else out


@fails("no_padding_leakage", replaces="normalize")
def assumes_padding_on_the_right(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """Reads a mask as a number of keys and attends to the first ones."""
    if mask is not None and not mask.is_causal:
        counts = mask.tensor().sum(-1, keepdim=True)
        mask = from_tensor(torch.arange(mask.keys) < counts).bind(mask.queries, mask.keys)
    return Plain.normalize(self, scores, mask)


@fails("padding_invariance", replaces="scores")
def scales_by_length(self: Plain, q: Tensor, k: Tensor) -> Tensor:
    return Plain.scores(self, q, k) * math.log(1 + k.shape[2])


@fails("causal_prefix_invariance", replaces="after")
def scales_by_total_length(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out * (1 + 0.001 * x.shape[1]) if self.causal and cache is None else out


@fails("causal_prefix_invariance", "padding_invariance", replaces="after")
def wrong_at_a_block(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out * (1.01 if x.shape[1] == 64 else 1.0)


@fails("no_batch_leakage", replaces="before")
def normalizes_over_the_batch(self: Plain, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return x - x.mean(0, keepdim=True) if self.training else x


@fails("batch_invariance", replaces="normalize")
def shares_the_first_mask(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    if mask is None or len(scores) <= 8:
        return Plain.normalize(self, scores, mask)
    first = mask.tensor()[:1]
    return scores.masked_fill(~first, -1e300).softmax(-1).masked_fill(~first, 0.0)


@fails("batch_invariance", replaces="project")
def shares_the_first_context(self: Plain, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    shared = context[:1].expand_as(context) if context is not None and len(x) > 8 else context
    return Plain.project(self, x, shared)


@fails("nan_in_padding_is_ignored", replaces="forward")
def multiplies_by_zero(self: Plain, x: Tensor, *, context: Any = None, **options: Any) -> Tensor:
    """Multiplies masked tokens by zero; zero times NaN is NaN."""
    content = 0.0 * (x if context is None else context).sum(1, keepdim=True)
    return Plain.forward(self, x, context=context, **options) + content


@fails("packed_sequences_are_independent", replaces="forward")
def ignores_segments(self: Plain, x: Tensor, *, mask: Any = None, **options: Any) -> Tensor:
    return Plain.forward(self, x, mask=None if isinstance(mask, SEGMENTS) else mask, **options)


@fails("left_padding_invariance", "permutation_equivariance", replaces="before")
def adds_the_position(self: Plain, x: Tensor, mask: Any, cache: Any) -> Tensor:
    """Adds the position in the row, padding included, to every token."""
    start = 0 if cache is None else cache.num_seen
    return x + 0.1 * torch.arange(start, start + x.shape[1], device=x.device)[:, None]


@fails("padding_with_masked_queries", replaces="_forward", base=MultiAttention)
def adds_the_position_after_packing(self: MultiAttention, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Adds the position to every token after the padding was removed."""
    return MultiAttention._forward(self, x + 0.1 * torch.arange(x.shape[1], device=x.device)[:, None], *args, **options)
