"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnlab.positions import Rotary

from ..multihead.reference import turned
from .talkingheads import TalkingHeadsAttention


def reference(
    layer: TalkingHeadsAttention,
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
    owns = [slice(head * d_k, (head + 1) * d_k) for head in range(h)]

    rows = []
    for b in range(B):
        for i in range(N):
            maps = []  # of the softmaxes in the middle: (weight, key)
            for g in range(h):
                seen = [j for j in range(context.shape[1]) if mask is None or mask[b, g, i, j]]
                mixed = [
                    sum(layer.scores[g, f] * (Q[b, i, owns[f]] @ K[b, j, owns[f]]) / math.sqrt(d_k) for f in range(h))
                    for j in seen
                ]
                highest = max((score.item() for score in mixed), default=0.0)
                powers = [torch.exp(score - highest) for score in mixed]
                maps.append([(power / sum(powers), j) for power, j in zip(powers, seen, strict=True)])
            heads = []
            for head in range(h):
                answer = torch.zeros_like(Q[b, i, owns[head]])
                for g in range(h):
                    for weight, j in maps[g]:
                        answer = answer + layer.mixture[head, g] * weight * V[b, j, owns[head]]
                heads.append(answer)
            rows.append(layer.output(torch.cat(heads)) if any(maps) else torch.zeros_like(x[b, i]))
    return torch.stack(rows).reshape(B, N, D)
