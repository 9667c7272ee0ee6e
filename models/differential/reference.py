"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnlab.positions import Rotary

from ..multihead.reference import distance, turned
from .differential import DifferentialAttention


def reference(
    layer: DifferentialAttention,
    x: Tensor,
    mask: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """What ``layer(x)`` must give; ``mask`` is Boolean (B, H, N, M), ``causal`` already in it."""
    (B, N, D), h = x.shape, layer.num_heads
    wide = D // h  # of a value: 2d
    d = wide // 2
    context = x if context is None else context
    W_Q, W_K, W_V = layer.qkv.weight.split(D)
    b_Q, b_K, b_V = (0, 0, 0) if layer.qkv.bias is None else layer.qkv.bias.split(D)
    Q, K, V = x @ W_Q.T + b_Q, context @ W_K.T + b_K, context @ W_V.T + b_V
    if isinstance(layer.positions, Rotary):
        Q, K = turned(Q, d, layer.positions), turned(K, d, layer.positions)
    q1, k1, q2, k2 = layer.lambda_qk
    lam = torch.exp((q1 * k1).sum()) - torch.exp((q2 * k2).sum()) + layer.lambda_init

    rows = []
    for b in range(B):
        for i in range(N):
            heads, blind = [], True
            for head in range(h):
                value = slice(head * wide, (head + 1) * wide)
                seen = [j for j in range(context.shape[1]) if mask is None or mask[b, head, i, j]]
                blind = blind and not seen
                answer = torch.zeros_like(x[b, i, value])
                for part, factor in ((0, 1), (1, -lam)):  # softmax₁ - λ softmax₂
                    own = slice(head * wide + part * d, head * wide + (part + 1) * d)
                    scores = [Q[b, i, own] @ K[b, j, own] / math.sqrt(d) + distance(layer, head, j - i) for j in seen]
                    highest = max((score.item() for score in scores), default=0.0)
                    powers = [torch.exp(score - highest) for score in scores]
                    for power, j in zip(powers, seen, strict=True):
                        answer = answer + factor * power / sum(powers) * V[b, j, value]
                root = torch.sqrt((answer**2).mean() + 1e-5)
                heads.append(answer / root * layer.norm.weight * (1 - layer.lambda_init))
            rows.append(torch.zeros_like(x[b, i]) if blind else layer.output(torch.cat(heads)))
    return torch.stack(rows).reshape(B, N, D)
