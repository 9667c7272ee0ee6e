"""The formula of the paper, eager and quadratic: the ground truth of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import LinearAttention


def reference(layer: LinearAttention, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, M) and contains ``causal``."""
    source = x if context is None else context
    Q = layer.qkv(x).chunk(3, -1)[0].unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)  # (B, h, N, d_k)
    _, K, V = (t.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for t in layer.qkv(source).chunk(3, -1))
    if layer.feature_map == "elu":
        Q, K = torch.where(Q > 0, Q + 1, Q.exp()), torch.where(K > 0, K + 1, K.exp())
    else:
        Q, K = (F.relu(t) if layer.feature_map == "relu" else t.softmax(-1) for t in (Q, K))
    weights = torch.einsum("bhnd,bhmd->bhnm", Q, K)
    weights = weights if mask is None else weights * mask
    total = weights.sum(-1, keepdim=True)
    heads = torch.where(total == 0, torch.zeros_like(total), weights / total.clamp_min(1e-300)) @ V
    out = layer.output(heads.transpose(1, 2).flatten(2))
    return out if mask is None else out * mask.any(-1).any(1).unsqueeze(-1)
