"""Something is accepted in silence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from plain import Plain
from torch import Tensor

from attnlab.models.multihead import MultiAttention
from broken._twins import breaks


@breaks("what is not claimed raises")
class SwallowsTheCache(MultiAttention):
    """Takes a cache, which its card does not claim, and does nothing with it."""

    card = replace(MultiAttention.card, supports=tuple(set(MultiAttention.card.supports) - {"cache"}))

    def forward(self, x: Tensor, *, cache: Any = None, **given: Any) -> Tensor:
        return super().forward(x, **given)


@breaks("a float mask raises and names bias=")
class GuessesTheMask(MultiAttention):
    """Takes a mask of numbers to mean what is not zero."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        return super().forward(x, mask=mask.bool() if isinstance(mask, Tensor) else mask, **given)


@breaks("what does not fit raises")
class PadsTheWidth(MultiAttention):
    """Cuts tokens that are too wide."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x[..., : self.embed_dim], **given)


@breaks("a mask is its Boolean tensor")
class HasTwoPolarities(MultiAttention):
    """Reads a tensor as `nn.MultiheadAttention` does, a Mask as itself."""

    def _validate(self, x: Tensor, mask: Any, **optional: Any) -> Any:
        return super()._validate(x, ~mask if isinstance(mask, Tensor) else mask, **optional)


@breaks("causal with a context of another length raises")
class ComparesTwoSequences(Plain):
    """Aligns the ends of two sequences, and masks what is left in silence."""

    def forward(self, x: Tensor, *, context: Any = None, **given: Any) -> Tensor:
        causality, self.causal = self.causal, self.causal and context is None
        try:
            return super().forward(x, context=context, **given)
        finally:
            self.causal = causality


@breaks("an integer mask raises or is read as Boolean")
class InvertsBytes(Plain):
    """Takes a uint8 mask of ones for *masked*, as older versions of PyTorch did."""

    def forward(self, x: Tensor, *, mask: Any = None, **given: Any) -> Tensor:
        is_bytes = isinstance(mask, Tensor) and mask.dtype == torch.uint8
        return super().forward(x, mask=mask == 0 if is_bytes else mask, **given)


@breaks("a bias broadcasts")
class IgnoresSmallBiases(Plain):
    """Adds a bias only where it has four axes."""

    def forward(self, x: Tensor, *, bias: Any = None, **given: Any) -> Tensor:
        return super().forward(x, attn_bias=bias if bias is None or bias.dim() == 4 else None, **given)


@breaks("a bias broadcasts")
class IgnoresOtherDtypes(Plain):
    """Adds a bias only where it has the dtype of the tokens."""

    def forward(self, x: Tensor, *, bias: Any = None, **given: Any) -> Tensor:
        return super().forward(x, attn_bias=bias if bias is None or bias.dtype == x.dtype else None, **given)
