"""The same question has two answers."""

from __future__ import annotations

import random
from typing import Any

import torch
from plain import Plain
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.models.multihead import MultiAttention
from attnlab.ops.softmax import softmax_attention
from broken._twins import breaks


@breaks("dropout is off in eval")
class DropsInEval(MultiAttention):
    """Drops whenever dropout is not zero."""

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        Q, K, V = self._project_qkv(x, context)
        return self._merge_heads(softmax_attention(Q, K, V, mask, attn_bias, dropout=self.dropout), x)


@breaks("dropout is right on average")
class DropsWithoutScaling(MultiAttention):
    """Does not make up for what it drops."""

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        weights = self._attention_weights(x, mask, attn_bias, context)
        if self.training and self.dropout:
            weights = weights * (torch.rand_like(weights) >= self.dropout)
        return self._apply_weights(weights, x, context)


@breaks("dropout is right on average")
class SwapsDropping(MultiAttention):
    """Keeps with the probability with which it should drop, and makes up for the other."""

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        weights = self._attention_weights(x, mask, attn_bias, context)
        if self.training and self.dropout:
            weights = weights * (torch.rand_like(weights) < self.dropout) / (1 - self.dropout)
        return self._apply_weights(weights, x, context)


@breaks("dropout is right on average")
class NeverDrops(MultiAttention):
    """Takes a dropout and forgets it."""

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        return self._apply_weights(self._attention_weights(x, mask, attn_bias, context), x, context)


@breaks("same seed, same result")
class OwnRandomness(MultiAttention):
    """Draws from a generator that no seed reaches."""

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        noise = torch.rand(1, generator=generator).to(x)
        return super()._forward(x, mask, attn_bias, context) + (noise if self.training else 0)


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


@breaks("training without dropout = eval")
class ScalesInTraining(Plain):
    """Gives other numbers in training, at a multiple of a block."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given) * (1.01 if self.training and x.shape[1] == 64 else 1.0)


@breaks("eval calls change no later output")
class AveragesInEval(Plain):
    """Keeps a running mean of its tokens in a buffer, in eval too."""

    def __init__(self, embed_dim: int, num_heads: int = 3, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        out = super().forward(x, **given) + self.mean.to(x)
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean().to(self.mean)
        return out


@breaks("eval calls change no later output")
class CountsItsCalls(Plain):
    """Counts its calls in a buffer of the state_dict."""

    def __init__(self, embed_dim: int, num_heads: int = 3, **options: Any) -> None:
        super().__init__(embed_dim, num_heads, **options)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        self.calls = self.calls + 1
        return super().forward(x, **given)


@breaks("eval calls change no later output")
class KeepsAMask(Plain):
    """Keeps the first mask of each shape for later calls."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        if mask is None:
            return super().normalize(scores, mask)
        kept = self.__dict__.setdefault("kept", {}).setdefault(scores.shape, mask)
        return super().normalize(scores, kept)


@breaks("eval does not depend on the global seed")
class AddsNoiseInEval(Plain):
    """Adds a little noise in eval, at a multiple of a block."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        noise = 1e-6 * torch.rand((), device=x.device).to(x.dtype)
        return super().forward(x, **given) + (noise if x.shape[1] == 64 and not self.training else 0.0)


@breaks("eval does not depend on the global seed")
class DrawsFromPython(Plain):
    """Draws from Python's generator."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given) + 1e-6 * random.random()


@breaks("dropout is right on average")
class DropsWithoutScalingAtABlock(Plain):
    """Does not make up for what it drops, from 64 tokens on."""

    def attend(self, weights: Tensor, v: Tensor) -> Tensor:
        out = super().attend(weights, v)
        return out * (1 - self.dropout) if self.training and weights.shape[-1] >= 64 else out
