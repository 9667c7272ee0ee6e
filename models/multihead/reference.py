"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnlab.nn.multihead import MultiHeadBase
from attnlab.positions import ALiBi, Rotary, T5Bias


def reference(
    layer: MultiHeadBase,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """What ``layer(x)`` must give; ``mask`` is Boolean (B, H, N, M), ``causal`` already in it.

    Others that differ in who may look at whom alone hold themselves to it too, under a mask that says so.
    """
    (B, N, D), h, d_k = x.shape, layer.num_heads, layer.head_dim
    context = x if context is None else context
    W_Q, W_K, W_V = layer.qkv.weight.split(h * d_k)
    b_Q, b_K, b_V = (0, 0, 0) if layer.qkv.bias is None else layer.qkv.bias.split(h * d_k)
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
                scores = [
                    Q[b, i, own] @ K[b, j, own] / math.sqrt(d_k)
                    + (0 if attn_bias is None else attn_bias[b, head, i, j])
                    + distance(layer, head, j - i)
                    for j in seen
                ]
                highest = max(score.item() for score in scores)
                powers = [torch.exp(score - highest) for score in scores]
                heads.append(sum(p * V[b, j, own] for p, j in zip(powers, seen, strict=True)) / sum(powers))
            rows.append(torch.zeros_like(x[b, i]) if blind else layer.output(torch.cat(heads)))
    return torch.stack(rows).reshape(B, N, D)


def turned(x: Tensor, d: int, rotary: Rotary) -> Tensor:
    """Each pair of the first r numbers of a head, at place m, turned by the angle m · base^(-2i/r).

    A pair is (i, i + r/2), or (2i, 2i + 1) where they are interleaved.
    """
    r, out = rotary.width, x.clone()
    theta = [rotary.base ** (-2 * i / r) for i in range(r // 2)]
    if rotary.scaling is not None:
        theta = list(rotary.frequencies)
    for m in range(x.shape[1]):
        for head in range(0, x.shape[2], d):
            for i in range(r // 2):
                first, second = (i, i + r // 2) if rotary.layout == "half" else (2 * i, 2 * i + 1)
                a, b = x[:, m, head + first], x[:, m, head + second]
                cos, sin = (rotary.attention_factor * f(m * theta[i]) for f in (math.cos, math.sin))
                out[:, m, head + first], out[:, m, head + second] = a * cos - b * sin, a * sin + b * cos
    return out


def distance(layer: MultiHeadBase, head: int, offset: int) -> Tensor | float:
    """What positions add to a score of this head, for a key that is ``offset`` ahead of the query."""
    if isinstance(layer.positions, ALiBi):
        return -layer.positions.slopes[head] * abs(offset)
    if isinstance(layer.positions, T5Bias):
        return layer.positions.table.weight[t5_range(offset, layer.positions), head]
    return 0.0


def t5_range(offset: int, t5: T5Bias) -> int:
    """Half of the ranges are for keys ahead, unless causal; the nearer half is exact, the others go by logarithm."""
    count = t5.num_buckets if t5.causal else t5.num_buckets // 2
    far = max(-offset, 0) if t5.causal else abs(offset)
    start = 0 if t5.causal or offset <= 0 else count
    if far < count // 2:
        return start + far
    coarse = int(math.log(far / (count // 2)) / math.log(t5.max_distance / (count // 2)) * (count - count // 2))
    return start + min(count // 2 + coarse, count - 1)
