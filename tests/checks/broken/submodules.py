"""A submodule is read past its call."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from plain import Plain
from torch import Tensor

from broken._twins import breaks


@breaks("submodules are called")
@breaks("pruned layers train")
class ReadsTheWeight(Plain):
    """Computes the queries from ``query.weight`` and ``query.bias``."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        source = x if context is None else context
        q = F.linear(x, self.query.weight, self.query.bias)
        return self.split(q), self.split(self.key(source)), self.split(self.value(source))


@breaks("submodules are called")
class FusesOnEveryCall(Plain):
    """Concatenates three weights for one product, in self-attention alone."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if context is not None:
            return super().project(x, context)
        parts = self.query, self.key, self.value
        weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        q, k, v = F.linear(x, weight, bias).chunk(3, -1)
        return self.split(q), self.split(k), self.split(v)


@breaks("submodules are called")
class BypassesHooks(Plain):
    """Calls ``forward`` instead of the module, so that hooks do not run."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, _, v = super().project(x, context)
        return q, self.split(self.key.forward(x if context is None else context)), v


@breaks("submodules are called")
class ReadsTheWeightInCachedSteps(Plain):
    """Computes the keys from ``key.weight`` where there is a cache."""

    def _forward(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None, cache: Any = None) -> Tensor:
        if cache is None:
            return super()._forward(x, mask, attn_bias, context)
        q, _, v = self.project(x, None)
        k, v = cache.update(self.split(F.linear(x, self.key.weight, self.key.bias)), v)
        return self.attend(self.normalize(self.scores(q, k), mask), v)


@breaks("submodules are called")
class ReadsTheWeightOfLongSequences(Plain):
    """Projects the output from ``output.weight`` at 64 tokens and more."""

    def attend(self, weights: Tensor, v: Tensor) -> Tensor:
        if weights.shape[-1] < 64:
            return super().attend(weights, v)
        return F.linear((weights @ v).transpose(1, 2).flatten(2), self.output.weight, self.output.bias)


@breaks("dynamic quantization runs")
class SlicesTheWeight(Plain):
    """Slices the weight of a projection in cross-attention."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x, context)
        return (
            (q, k, v) if context is None else (q, self.split(F.linear(context, self.key.weight[:]) + self.key.bias), v)
        )
