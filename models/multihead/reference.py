"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnlab.positions import ALiBi, Rotary, T5Bias

from .multihead import MultiAttention


def reference(
    layer: MultiAttention,
    x: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """What ``layer(x)`` must give; ``mask`` is Boolean (B, H, N, M), ``causal`` already in it."""
    (B, N, D), h, d_k = x.shape, layer.num_heads, layer.head_dim
    context = x if context is None else context
    W_Q, W_K, W_V = layer.qkv.weight.split(h * d_k)
    b_Q, b_K, b_V = (0, 0, 0) if layer.qkv.bias is None else layer.qkv.bias.split(h * d_k)
    Q, K, V = x @ W_Q.T + b_Q, context @ W_K.T + b_K, context @ W_V.T + b_V
    if isinstance(layer.positions, Rotary):
        Q, K = turned(Q, d_k), turned(K, d_k)

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
                scores = [
                    Q[b, i, own] @ K[b, j, own] / math.sqrt(d_k)
                    + (0 if bias is None else bias[b, head, i, j])
                    + distance(layer, head, j - i)
                    for j in seen
                ]
                highest = max(score.item() for score in scores)
                powers = [torch.exp(score - highest) for score in scores]
                heads.append(sum(p * V[b, j, own] for p, j in zip(powers, seen, strict=True)) / sum(powers))
            rows.append(torch.zeros_like(x[b, i]) if blind else layer.output(torch.cat(heads)))
    return torch.stack(rows).reshape(B, N, D)


def turned(x: Tensor, d: int) -> Tensor:
    """Each pair (i, i + d/2) of a head, at place m, turned by the angle m · 10000^(-2i/d)."""
    out = []
    for m, row in enumerate(x.unbind(1)):
        heads = []
        for head in row.split(d, -1):
            a, b = head[:, : d // 2], head[:, d // 2 :]
            angles = [m * 10_000.0 ** (-2 * i / d) for i in range(d // 2)]
            cos, sin = (x.new_tensor([f(angle) for angle in angles]) for f in (math.cos, math.sin))
            heads += [a * cos - b * sin, a * sin + b * cos]
        out.append(torch.cat(heads, -1))
    return torch.stack(out, 1) if out else x


def distance(layer: MultiAttention, head: int, offset: int) -> Tensor | float:
    """What positions add to a score of this head, for a key that is ``offset`` ahead of the query."""
    if isinstance(layer.positions, ALiBi):
        return -float(layer.positions.slopes[head]) * abs(offset)
    if isinstance(layer.positions, T5Bias):
        return layer.positions.table.weight[t5_range(offset, layer.causal), head]
    return 0.0


def t5_range(offset: int, causal: bool) -> int:
    """One of 32 ranges: half of them for keys ahead, unless causal; the nearer half exact, the others by logarithm."""
    count = 32 if causal else 16
    far = max(-offset, 0) if causal else abs(offset)
    start = 0 if causal or offset <= 0 else 16
    if far < count // 2:
        return start + far
    coarse = int(math.log(far / (count // 2)) / math.log(128 / (count // 2)) * (count - count // 2))
    return start + min(count // 2 + coarse, count - 1)
