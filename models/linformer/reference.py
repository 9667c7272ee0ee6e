"""The formula of the paper in eager PyTorch, token by token where there is padding: the ground truth of the tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..multihead.reference import merge_heads, project_qkv
from .linformer import LinformerAttention


def reference(
    layer: LinformerAttention, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None
) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, M) and excludes the same keys for all queries."""
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads)
    heads = []
    for b in range(len(x)):
        real = [j for j in range(K.shape[2]) if mask is None or bool(mask[b, 0, :, j].any())]
        E = layer.E[..., : len(real)]  # the columns of the real tokens, by order
        F = E if layer.F is None else layer.F[..., : len(real)]
        weights = (Q[b] @ (E @ K[b][:, real]).mT / math.sqrt(layer.head_dim)).softmax(-1)  # (H, N, k)
        heads.append(weights @ (F @ V[b][:, real]))
    return merge_heads(layer.output, torch.stack(heads) if heads else Q, mask)
