"""The formula in eager PyTorch: the difference of two softmax maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, position_bias, project_qkv, rotate
from .differential import DifferentialAttention


def reference(
    layer: DifferentialAttention, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads)  # (B, H, N, 2d)
    maps = []
    for Q_i, K_i in zip(Q.chunk(2, -1), K.chunk(2, -1), strict=True):  # (B, H, N, d)
        Q_i, K_i = rotate(Q_i, layer.positions), rotate(K_i, layer.positions)
        scores = Q_i @ K_i.mT / math.sqrt(Q_i.shape[-1]) + position_bias(layer.positions, Q_i, K_i)
        maps.append(masked_softmax(scores, mask))
    q1, k1, q2, k2 = layer.lambda_qk
    lam = torch.exp(q1 @ k1) - torch.exp(q2 @ k2) + layer.lambda_init
    heads = (maps[0] - lam * maps[1]) @ V
    heads = heads / (heads.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.norm.weight
    return merge_heads(layer.output, heads * (1 - layer.lambda_init), mask)
