"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnlab.positions import Rotary

from ..multihead.reference import distance, turned
from .entmax import EntmaxAttention


def reference(
    layer: EntmaxAttention,
    x: Tensor,
    mask: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """What ``layer(x)`` must give; ``mask`` is Boolean (B, H, N, M), ``causal`` already in it."""
    (B, N, D), h = x.shape, layer.num_heads
    d_k = D // h
    context = x if context is None else context
    W_Q, W_K, W_V = layer.qkv.weight.split(D)
    b_Q, b_K, b_V = (0, 0, 0) if layer.qkv.bias is None else layer.qkv.bias.split(D)
    Q, K, V = x @ W_Q.T + b_Q, context @ W_K.T + b_K, context @ W_V.T + b_V
    if isinstance(layer.positions, Rotary):
        Q, K = turned(Q, d_k, layer.positions), turned(K, d_k, layer.positions)

    rows = []
    for b in range(B):
        for i in range(N):
            heads, blind = [], True
            for head in range(h):
                own = slice(head * d_k, (head + 1) * d_k)
                seen = [j for j in range(context.shape[1]) if mask is None or mask[b, head, i, j]]
                if not seen:
                    heads.append(torch.zeros_like(Q[b, i, own]))
                    continue
                blind = False
                scores = torch.stack(
                    [Q[b, i, own] @ K[b, j, own] / math.sqrt(d_k) + distance(layer, head, j - i) for j in seen]
                )
                weights = entmax(scores, layer.alpha)
                heads.append(sum(weight * V[b, j, own] for weight, j in zip(weights, seen, strict=True)))
            rows.append(torch.zeros_like(x[b, i]) if blind else layer.output(torch.cat(heads)))
    return torch.stack(rows).reshape(B, N, D)


def entmax(scores: Tensor, alpha: float) -> Tensor:
    """τ by bisection without a gradient, then one step of Newton's method with it, which makes it exact."""
    z = (alpha - 1) * scores
    power = 1 / (alpha - 1)
    low, high = z.max().item() - 1, z.max().item()
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(max(number - middle, 0.0) ** power for number in z.tolist())
        low, high = (middle, high) if total > 1 else (low, middle)
    kept = z > low
    excess = ((z[kept] - low) ** power).sum() - 1
    slope = (power * (z[kept].detach() - low) ** (power - 1)).sum()
    tau = low + excess / slope
    return torch.where(kept, (z - tau).clamp(min=0) ** power, 0.0)
