"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attnlab.positions import Rotary

from ..multihead.reference import distance, turned
from .longformer import LongformerAttention


def reference(
    layer: LongformerAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
) -> Tensor:
    """What ``layer(x)`` must give; ``mask`` is Boolean (B, H, N, N), ``causal`` already in it."""
    (B, N, D), h = x.shape, layer.num_heads
    d_k = D // h
    near, everywhere = projected(layer, layer.qkv, x), projected(layer, layer.qkv_global, x)

    rows = []
    for b in range(B):
        for i in range(N):
            heads, blind = [], True
            Q, K, V = everywhere if i < layer.num_global else near
            for head in range(h):
                own = slice(head * d_k, (head + 1) * d_k)
                linked = [j for j in range(N) if abs(i - j) < layer.window_size or min(i, j) < layer.num_global]
                seen = [j for j in linked if mask is None or mask[b, head, i, j]]
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
                read = torch.stack([p * V[b, j, own] for p, j in zip(powers, seen, strict=True)]).sum(0)
                heads.append(read / torch.stack(powers).sum())
            rows.append(torch.zeros_like(x[b, i]) if blind else layer.output(torch.cat(heads)))
    return torch.stack(rows).reshape(B, N, D)


def projected(layer: LongformerAttention, qkv: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values by one set of projections."""
    D = x.shape[-1]
    W_Q, W_K, W_V = qkv.weight.split(D)
    b_Q, b_K, b_V = (0, 0, 0) if qkv.bias is None else qkv.bias.split(D)
    Q, K, V = x @ W_Q.T + b_Q, x @ W_K.T + b_K, x @ W_V.T + b_V
    if isinstance(layer.positions, Rotary):
        d_k = D // layer.num_heads
        Q, K = turned(Q, d_k, layer.positions), turned(K, d_k, layer.positions)
    return Q, K, V
