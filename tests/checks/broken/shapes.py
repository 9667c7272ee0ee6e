"""What goes in does not come out as it should."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.masks import BoundMask
from attnlab.models.multihead import MultiAttention
from attnlab.ops.softmax import softmax_attention
from broken._twins import breaks


@breaks("keeps the shape")
class Squeezes(MultiAttention):
    """Drops the batch axis of a single item."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given).squeeze(0)


@breaks("keeps the shape")
class NeedsEvenLengths(MultiAttention):
    """Reshapes the sequence into pairs."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given).unflatten(1, (-1, 2)).flatten(1, 2)


@breaks("takes an empty batch or sequence")
class ReshapesByGuess(MultiAttention):
    """Leaves a size to be inferred, which no size can be where there are no numbers."""

    @staticmethod
    def _concat(heads: Tensor) -> Tensor:
        B, H, N, d = heads.shape
        return heads.transpose(1, 2).reshape(B, N, H, -1).reshape(B, N, H * d)


@breaks("keeps the dtype")
class ComputesInSingle(MultiAttention):
    """Returns float32 whatever came in."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        return super().forward(x, **given).float()


@breaks("runs under bfloat16 autocast")
class LeavesAutocast(MultiAttention):
    """Projects outside of autocast what was computed inside of it."""

    def _forward(self, x: Tensor, mask: BoundMask | None, attn_bias: Any = None, context: Any = None) -> Tensor:
        Q, K, V = self._project_qkv(x, context)
        heads = softmax_attention(Q, K, V, mask, attn_bias, dropout=self.dropout if self.training else 0.0)
        heads = heads.transpose(1, 2).flatten(2)
        with torch.autocast(x.device.type, enabled=False):
            return self.output(heads)


@breaks("takes any strides")
class ReadsMemory(MultiAttention):
    """Takes the tokens to lie one after another in memory."""

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        B, N, D = x.shape
        return super()._project_qkv(x.as_strided((B, N, D), (N * D, D, 1)), context)
