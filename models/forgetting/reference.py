"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnlab.positions import Rotary

from ..multihead.reference import turned
from .forgetting import ForgettingAttention


def reference(
    layer: ForgettingAttention, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None
) -> Tensor:
    """What ``layer(x)`` must give; ``mask`` is Boolean (B, H, N, N), ``causal`` already in it."""
    (B, N, D), h = x.shape, layer.num_heads
    d_k = D // h
    W_Q, W_K, W_V = layer.qkv.weight.split(D)
    b_Q, b_K, b_V = (0, 0, 0) if layer.qkv.bias is None else layer.qkv.bias.split(D)
    Q, K, V = x @ W_Q.T + b_Q, x @ W_K.T + b_K, x @ W_V.T + b_V
    if isinstance(layer.positions, Rotary):
        Q, K = turned(Q, d_k, layer.positions), turned(K, d_k, layer.positions)
    forget = 1 / (1 + torch.exp(-layer.forget(x)))  # (B, N, h)

    rows = []
    for b in range(B):
        for i in range(N):
            heads, blind = [], True
            for head in range(h):
                own = slice(head * d_k, (head + 1) * d_k)
                seen = [j for j in range(N) if mask is None or mask[b, head, i, j]]
                if not seen:
                    heads.append(torch.zeros_like(Q[b, i, own]))
                    continue
                blind = False
                scores = []
                for j in seen:
                    passed = [m for m in seen if (j < m <= i if j < i else i <= m < j)]
                    decay = sum(torch.log(forget[b, m, head]) for m in passed)
                    score = Q[b, i, own] @ K[b, j, own] / math.sqrt(d_k) + decay
                    scores.append(score + (0 if attn_bias is None else attn_bias[b, head, i, j]))
                highest = max(score.item() for score in scores)
                powers = [torch.exp(score - highest) for score in scores]
                heads.append(sum(p * V[b, j, own] for p, j in zip(powers, seen, strict=True)) / sum(powers))
            rows.append(torch.zeros_like(x[b, i]) if blind else layer.output(torch.cat(heads)))
    return torch.stack(rows).reshape(B, N, D)
