"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attnlab.positions import Rotary

from ..multihead.reference import turned
from .latent import LatentAttention


def reference(
    layer: LatentAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
) -> Tensor:
    """What ``layer(x)`` must give; ``mask`` is Boolean (B, H, N, N), ``causal`` already in it."""
    (B, N, D), h, d_k, d_r, d_c = x.shape, layer.num_heads, layer.head_dim, layer.rope_head_dim, layer.kv_latent_dim
    down = x @ layer.kv_down.weight.T
    c, k_R = by_root_mean_square(down[..., :d_c], layer.kv_norm), down[..., d_c:]
    q = x
    if layer.q_down is not None and layer.q_norm is not None:
        q = by_root_mean_square(x @ layer.q_down.weight.T, layer.q_norm)
    q = (q @ layer.query.weight.T).reshape(B, N, h, d_k + d_r)
    q_C, q_R = q[..., :d_k], q[..., d_k:].reshape(B, N, h * d_r)
    if isinstance(layer.positions, Rotary):
        temperature, width = layer.positions.attention_factor**2, layer.positions.width
        q_C = q_C * temperature
        q_R = torch.cat([q[..., d_k : d_k + width], temperature * q[..., d_k + width :]], -1).reshape(B, N, h * d_r)
        q_R, k_R = turned(q_R, d_r, layer.positions), turned(k_R, d_r, layer.positions)
    W_UK, W_UV = layer.kv_up.weight.split(h * d_k)
    k_C, v = c @ W_UK.T, c @ W_UV.T

    rows = []
    for b in range(B):
        for i in range(N):
            heads, blind = [], True
            for head in range(h):
                own, part = slice(head * d_k, (head + 1) * d_k), slice(head * d_r, (head + 1) * d_r)
                seen = [j for j in range(N) if mask is None or mask[b, head, i, j]]
                if not seen:
                    heads.append(torch.zeros_like(v[b, i, own]))
                    continue
                blind = False
                scores = [
                    (q_C[b, i, head] @ k_C[b, j, own] + q_R[b, i, part] @ k_R[b, j]) / math.sqrt(d_k + d_r)
                    + (0 if attn_bias is None else attn_bias[b, head, i, j])
                    for j in seen
                ]
                highest = max(score.item() for score in scores)
                powers = [torch.exp(score - highest) for score in scores]
                read = torch.stack([p * v[b, j, own] for p, j in zip(powers, seen, strict=True)]).sum(0)
                heads.append(read / torch.stack(powers).sum())
            rows.append(torch.zeros_like(x[b, i]) if blind else torch.cat(heads) @ layer.output.weight.T)
    return torch.stack(rows).reshape(B, N, D)


def by_root_mean_square(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Each vector over its root mean square, times the gains."""
    assert norm.eps is not None
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + norm.eps) * norm.weight
