"""Errors that appear when a layer is compiled, exported, traced, modified or run on long sequences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from plain import Plain, fails
from torch import Tensor


@fails("compile_matches_eager", "traceable", replaces="before")
def branches_on_a_value(self: Plain, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return x if x.sum() > 0 else x + 0


@fails("compile_matches_eager", replaces="after")
def scales_when_compiled(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out * (2.0 if torch.compiler.is_compiling() else 1.0)


@fails("export_matches_eager", replaces="before")
def fixes_the_length(self: Plain, x: Tensor, mask: Any, cache: Any) -> Tensor:
    if not hasattr(self, "first"):
        self.first = int(x.shape[1])
    return x * (1 + x.shape[1] % self.first)


@fails("export_matches_eager", replaces="before")
def fixes_the_batch(self: Plain, x: Tensor, mask: Any, cache: Any) -> Tensor:
    if not hasattr(self, "first"):
        self.first = int(x.shape[0])
    return x.reshape(self.first, -1, self.embed_dim)


@fails("onnx_matches_eager", replaces="after")
def scales_in_onnx(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return out * (2.0 if torch.onnx.is_in_onnx_export() else 1.0)


@fails("onnx_matches_eager", replaces="after")
def uses_an_unsupported_operator(self: Plain, out: Tensor, x: Tensor, mask: Any, cache: Any) -> Tensor:
    return torch.special.airy_ai(out)


@fails("traceable", replaces="normalize")
def reads_a_mask(self: Plain, scores: Tensor, mask: Any) -> Tensor:
    """Drops a mask that masks nothing."""
    return Plain.normalize(self, scores, None if mask is None or bool(mask.tensor().all()) else mask)


@fails("traceable", replaces="before")
def reads_in_training(self: Plain, x: Tensor, mask: Any, cache: Any) -> Tensor:
    if self.training and x.shape[1] > 64:
        self.mean = x.mean().item()
    return x


@fails("memory_scaling")
class DeclaresLinearMemory(Plain):
    """Materializes all weights, and its card states that memory is linear in the length."""

    card = replace(Plain.card, memory="n·d", supports=())


@fails("submodules_are_called", "pruning", replaces="project")
def reads_the_weight(self: Plain, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    source = x if context is None else context
    q = F.linear(x, self.query.weight, self.query.bias)
    return self.split(q), self.split(self.key(source)), self.split(self.value(source))


@fails("submodules_are_called", replaces="project")
def fuses_weights(self: Plain, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenates three weights for one product in self-attention."""
    if context is not None:
        return Plain.project(self, x, context)
    parts = self.query, self.key, self.value
    weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    q, k, v = F.linear(x, weight, bias).chunk(3, -1)
    return self.split(q), self.split(k), self.split(v)


@fails("submodules_are_called", replaces="project")
def bypasses_hooks(self: Plain, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Calls ``forward`` in place of the module, so that hooks do not run."""
    q, _, v = Plain.project(self, x, context)
    return q, self.split(self.key.forward(x if context is None else context)), v


@fails("submodules_are_called", replaces="_forward")
def reads_the_weight_with_cache(self: Plain, x: Tensor, mask: Any, *, cache: Any = None, **options: Any) -> Tensor:
    if cache is None:
        return Plain._forward(self, x, mask, **options)
    q, _, v = self.project(x, None)
    k, v = cache.update(self.split(F.linear(x, self.key.weight, self.key.bias)), v)
    return self.attend(self.normalize(self.scores(q, k), mask), v)


@fails("submodules_are_called", replaces="attend")
def reads_the_weight_of_long_sequences(self: Plain, weights: Tensor, v: Tensor) -> Tensor:
    if weights.shape[-1] < 64:
        return Plain.attend(self, weights, v)
    return F.linear((weights @ v).transpose(1, 2).flatten(2), self.output.weight, self.output.bias)


@fails("dynamic_quantization", replaces="project")
def slices_the_weight(self: Plain, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Slices the weight of a projection in cross-attention."""
    q, k, v = Plain.project(self, x, context)
    return (q, k if context is None else self.split(F.linear(context, self.key.weight[:]) + self.key.bias), v)
