"""The formula of sigmoid attention in eager PyTorch.

Axes: B batch, H heads, N queries, M keys, D embed_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..multihead.reference import merge_heads, position_bias, project_qkv, rotate
from .sigmoid import SigmoidAttention


def reference(
    layer: SigmoidAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads)
    Q, K = rotate(Q, layer.positions), rotate(K, layer.positions)
    scores = Q @ K.mT / math.sqrt(layer.head_dim) + position_bias(layer.positions, Q, K)  # (B, H, N, M)
    scores = scores if attn_bias is None else scores + attn_bias
    allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    n = allowed.sum(-1, keepdim=True)  # (B, H, N, 1)
    weights = (1 / (1 + n * torch.exp(-scores))).masked_fill(~allowed, 0)  # σ(score - log n)
    return merge_heads(layer.output, weights @ V, mask)
