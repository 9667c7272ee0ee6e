"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnlab.positions import Rotary

from ..multihead.reference import distance, turned
from .gated import GatedAttention


def reference(
    layer: GatedAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
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
    gates = 1 / (1 + torch.exp(-layer.gate.projection(x)))  # (B, N, h · d_k), or (B, N, h)

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
                    + distance(layer, head, j - i)
                    + (0 if attn_bias is None else attn_bias[b, head, i, j])
                    for j in seen
                ]
                highest = max(score.item() for score in scores)
                powers = [torch.exp(score - highest) for score in scores]
                answer = sum(p * V[b, j, own] for p, j in zip(powers, seen, strict=True)) / sum(powers)
                gate = gates[b, i, head] if gates.shape[-1] == h else gates[b, i, own]
                heads.append(gate * answer)
            rows.append(torch.zeros_like(x[b, i]) if blind else layer.output(torch.cat(heads)))
    return torch.stack(rows).reshape(B, N, D)
