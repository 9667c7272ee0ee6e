"""The formula of the paper, eager and quadratic: the ground truth of the tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..multihead.reference import merge_heads, project_qkv
from .performer import PerformerAttention


def reference(
    layer: PerformerAttention, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None
) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, M) and contains ``causal``."""
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads)
    m, d = layer.projection.shape

    def phi(x: Tensor) -> Tensor:
        x = x / d**0.25
        return torch.exp(x @ layer.projection.T - x.square().sum(-1, keepdim=True) / 2) / math.sqrt(m)

    weights = phi(Q) @ phi(K).mT  # (B, H, N, M), exp(Q Kᵀ / √d) on average
    weights = weights if mask is None else weights * mask
    total = weights.sum(-1, keepdim=True)
    return merge_heads(layer.output, (weights / total.clamp_min(1e-300)).masked_fill(total == 0, 0) @ V, mask)
