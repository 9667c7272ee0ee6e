"""The formula of the paper, eager and quadratic: the ground truth of the tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..multihead.reference import merge_heads, project_qkv
from .linear import LinearAttention

FEATURE_MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": lambda x: torch.where(x > 0, x + 1, x.exp()),
    "relu": F.relu,
    "softmax": lambda x: x.softmax(-1),
}


def reference(layer: LinearAttention, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, M) and contains ``causal``."""
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads)
    phi = FEATURE_MAPS[layer.feature_map]
    weights = phi(Q) @ phi(K).mT  # (B, H, N, M)
    weights = weights if mask is None else weights * mask
    total = weights.sum(-1, keepdim=True)
    return merge_heads(layer.output, (weights / total.clamp_min(1e-300)).masked_fill(total == 0, 0) @ V, mask)
