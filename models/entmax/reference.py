"""The formula of entmax attention in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import merge_heads, scores_and_values
from .entmax import EntmaxAttention


def reference(layer: EntmaxAttention, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    scores, V = scores_and_values(layer, x, None, context)  # (B, H, N, M), (B, H, M, d)
    empty = torch.zeros(1, dtype=torch.bool) if mask is None else ~mask.any(-1, keepdim=True)
    scores = scores if mask is None else scores.masked_fill(~mask & ~empty, -torch.inf)
    return merge_heads(layer.output, entmax(scores, layer.alpha).masked_fill(empty, 0) @ V, mask)


def entmax(scores: Tensor, alpha: float) -> Tensor:
    """τ by bisection without a gradient, then one Newton step, which gives τ its exact gradient."""
    z, p = (alpha - 1) * scores, 1 / (alpha - 1)
    high = z.detach().amax(-1, keepdim=True)
    low = high - 1
    for _ in range(100):
        middle = (low + high) / 2
        above = ((z.detach() - middle).clamp(min=0) ** p).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    support = z > low
    base = (z - low).where(support, 1.0)
    excess = (base**p).where(support, 0.0).sum(-1, keepdim=True) - 1
    slope = (p * base.detach() ** (p - 1)).where(support, 0.0).sum(-1, keepdim=True)
    tau = low + excess / slope
    return ((z - tau).where(support, 1.0).clamp(min=0) ** p).where(support, 0.0)
