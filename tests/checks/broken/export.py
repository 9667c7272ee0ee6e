"""Outside of eager Python it answers otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.models.multihead import MultiAttention
from broken._twins import breaks


@breaks("torch.compile = eager")
class AsksTheNumbers(MultiAttention):
    """Branches on what the tokens hold."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x if x.sum() > 0 else x + 0, **given)


@breaks("torch.compile = eager")
class KnowsTheCompiler(MultiAttention):
    """Answers differently when compiled."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given) * (2.0 if torch.compiler.is_compiling() else 1.0)


@breaks("torch.export = eager")
class FixesTheLength(MultiAttention):
    """Makes its positions for the first length that it sees, and repeats them."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        if not hasattr(self, "first"):
            self.first = int(x.shape[1])
        return super().forward(x * (1 + x.shape[1] % self.first), **given)


@breaks("torch.export = eager")
class FixesTheBatch(MultiAttention):
    """Reshapes with the batch that it saw first."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        if not hasattr(self, "first"):
            self.first = int(x.shape[0])
        return super().forward(x.reshape(self.first, -1, self.embed_dim), **given)


@breaks("ONNX = eager")
class KnowsTheExporter(MultiAttention):
    """Doubles its answer in an ONNX graph alone."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given) * (2.0 if torch.onnx.is_in_onnx_export() else 1.0)


@breaks("ONNX = eager")
class HasNoOperator(MultiAttention):
    """Computes with an operator that ONNX has not."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return torch.special.airy_ai(super().forward(x, **given))
