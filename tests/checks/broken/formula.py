"""It is another formula."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from attnlab.models.multihead import MultiAttention
from broken._twins import breaks


@breaks("fast path = reference, outputs")
class ScalesByWidth(MultiAttention):
    """Divides by the root of embed_dim, in both paths: only the formula notices."""

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project_qkv(x, context)
        return Q / math.sqrt(self.num_heads), K, V


@breaks("fast path = reference, outputs")
class SplitsHeadsWrongly(MultiAttention):
    """Takes every third channel as a head, in both paths."""

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        keys = x if context is None else context
        D = self.embed_dim
        parts = [
            F.linear(given, self.qkv.weight[i * D : (i + 1) * D], self.qkv.bias[i * D : (i + 1) * D])
            for i, given in enumerate((x, keys, keys))
        ]
        Q, K, V = (part.unflatten(-1, (self.head_dim, self.num_heads)).permute(0, 3, 1, 2) for part in parts)
        return Q, K, V


@breaks("fast path = reference, gradients")
class DetachesKeys(MultiAttention):
    """The keys learn nothing."""

    def _project_qkv(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = super()._project_qkv(x, context)
        return Q, K.detach(), V
