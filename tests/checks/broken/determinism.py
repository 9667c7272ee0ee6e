"""The same question has two answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.engines.softmax import softmax_attention
from attnlab.masks import BoundMask
from attnlab.models.multihead import MultiAttention
from broken._twins import breaks


@breaks("dropout is off in eval")
class DropsInEval(MultiAttention):
    """Drops whenever dropout is not zero."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        Q, K, V = self._project(x, context)
        return self.output(self._concat(softmax_attention(Q, K, V, mask, bias, dropout=self.dropout)))


@breaks("dropout is right on average")
class DropsWithoutScaling(MultiAttention):
    """Does not make up for what it drops."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        weights = self._weights(x, mask, bias, context)
        if self.training and self.dropout:
            weights = weights * (torch.rand_like(weights) >= self.dropout)
        return self._mix(weights, x, context)


@breaks("dropout is right on average")
class SwapsDropping(MultiAttention):
    """Keeps with the probability with which it should drop, and makes up for the other."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        weights = self._weights(x, mask, bias, context)
        if self.training and self.dropout:
            weights = weights * (torch.rand_like(weights) < self.dropout) / (1 - self.dropout)
        return self._mix(weights, x, context)


@breaks("dropout is right on average")
class NeverDrops(MultiAttention):
    """Takes a dropout and forgets it."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        return self._mix(self._weights(x, mask, bias, context), x, context)


@breaks("same seed, same result")
class OwnRandomness(MultiAttention):
    """Draws from a generator that no seed reaches."""

    def _forward(self, x: Tensor, mask: BoundMask | None, bias: Any = None, context: Any = None) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        noise = torch.rand(1, generator=generator).to(x)
        return super()._forward(x, mask, bias, context) + (noise if self.training else 0)


@breaks("state_dict round trip")
class ForgetsItsBuffer(MultiAttention):
    """Keeps a random projection that state_dict does not know of."""

    def __init__(self, embed_dim: int, num_heads: int = 8, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)
        self.features = torch.randn(embed_dim)

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x * self.features.to(x), **given)


@breaks("deepcopy is the same, apart")
class SharesWithItsCopy(MultiAttention):
    """A copy keeps the original's parameters."""

    def __deepcopy__(self, memo: dict[int, Any]) -> SharesWithItsCopy:
        twin = SharesWithItsCopy(self.embed_dim, self.num_heads).to(self.output.weight.dtype)
        twin.qkv, twin.output = self.qkv, self.output
        return twin.train(self.training)


@breaks("pickle round trip")
class HoldsALambda(MultiAttention):
    """Holds a function that has no name."""

    def __init__(self, embed_dim: int, num_heads: int = 8, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)
        self.activation = lambda x: x
