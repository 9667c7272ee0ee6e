"""The formula of sigmoid attention in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import merge_heads, scores_and_values
from .sigmoid import SigmoidAttention


def reference(
    layer: SigmoidAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    scores, V = scores_and_values(layer, x, attn_bias, context)  # (B, H, N, M), (B, H, M, d)
    allowed = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    n = allowed.sum(-1, keepdim=True)  # (B, H, N, 1)
    weights = (1 / (1 + n * torch.exp(-scores))).masked_fill(~allowed, 0)  # σ(score - log n)
    return merge_heads(layer.output, weights @ V, mask)
