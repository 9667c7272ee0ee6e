"""Errors that appear when a layer is compiled, exported, traced, modified or run on long sequences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from plain import Plain
from torch import Tensor

from faulty._registry import fails


@fails("compile_matches_eager")
class BranchesOnAValue(Plain):
    """Branches on a value of the tokens."""

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return x if x.sum() > 0 else x + 0


@fails("compile_matches_eager")
class ScalesWhenCompiled(Plain):
    """Scales the output under a compiler."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out * (2.0 if torch.compiler.is_compiling() else 1.0)


@fails("export_matches_eager")
class FixesTheLength(Plain):
    """Stores the length of the first call."""

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        if not hasattr(self, "first"):
            self.first = int(x.shape[1])
        return x * (1 + x.shape[1] % self.first)


@fails("export_matches_eager")
class FixesTheBatch(Plain):
    """Reshapes with the batch size of the first call."""

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        if not hasattr(self, "first"):
            self.first = int(x.shape[0])
        return x.reshape(self.first, -1, self.embed_dim)


@fails("onnx_matches_eager")
class ScalesInOnnx(Plain):
    """Scales the output in an ONNX graph."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return out * (2.0 if torch.onnx.is_in_onnx_export() else 1.0)


@fails("onnx_matches_eager")
class UsesAnUnsupportedOperator(Plain):
    """Computes with an operator that ONNX does not have."""

    def after(self, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
        return torch.special.airy_ai(out)


@fails("traceable")
class ReadsAToken(BranchesOnAValue):
    """Branches on a value of the tokens."""


@fails("traceable")
class ReadsAMask(Plain):
    """Drops a mask that masks nothing."""

    def normalize(self, scores: Tensor, mask: Any) -> Tensor:
        return super().normalize(scores, None if mask is None or bool(mask.tensor().all()) else mask)


@fails("traceable")
class ReadsInTraining(Plain):
    """Records a statistic of long sequences in training."""

    def before(self, x: Tensor, mask: Any, cache: Any) -> Tensor:
        if self.training and x.shape[1] > 64:
            self.mean = x.mean().item()
        return x


@fails("memory_scaling")
class DeclaresLinearMemory(Plain):
    """Materializes all weights, and its card states that memory is linear in the length."""

    card = replace(Plain.card, memory="n·d", supports=())


@fails("submodules_are_called", "pruning")
class ReadsTheWeight(Plain):
    """Computes the queries from ``query.weight`` and ``query.bias``."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        source = x if context is None else context
        q = F.linear(x, self.query.weight, self.query.bias)
        return self.split(q), self.split(self.key(source)), self.split(self.value(source))


@fails("submodules_are_called")
class FusesWeights(Plain):
    """Concatenates three weights for one product in self-attention."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if context is not None:
            return super().project(x, context)
        parts = self.query, self.key, self.value
        weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        q, k, v = F.linear(x, weight, bias).chunk(3, -1)
        return self.split(q), self.split(k), self.split(v)


@fails("submodules_are_called")
class BypassesHooks(Plain):
    """Calls ``forward`` in place of the module, so that hooks do not run."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, _, v = super().project(x, context)
        return q, self.split(self.key.forward(x if context is None else context)), v


@fails("submodules_are_called")
class ReadsTheWeightWithCache(Plain):
    """Computes the keys from ``key.weight`` if there is a cache."""

    def _forward(self, x: Tensor, mask: Any, attn_bias: Any = None, context: Any = None, cache: Any = None) -> Tensor:
        if cache is None:
            return super()._forward(x, mask, attn_bias, context)
        q, _, v = self.project(x, None)
        k, v = cache.update(self.split(F.linear(x, self.key.weight, self.key.bias)), v)
        return self.attend(self.normalize(self.scores(q, k), mask), v)


@fails("submodules_are_called")
class ReadsTheWeightOfLongSequences(Plain):
    """Projects the output by ``output.weight`` at 64 tokens and more."""

    def attend(self, weights: Tensor, v: Tensor) -> Tensor:
        if weights.shape[-1] < 64:
            return super().attend(weights, v)
        return F.linear((weights @ v).transpose(1, 2).flatten(2), self.output.weight, self.output.bias)


@fails("dynamic_quantization")
class SlicesTheWeight(Plain):
    """Slices the weight of a projection in cross-attention."""

    def project(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x, context)
        return (q, k if context is None else self.split(F.linear(context, self.key.weight[:]) + self.key.bias), v)
