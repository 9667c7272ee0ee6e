"""The recurrence of the paper, one token at a time: the ground truth of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.nn.recurrent import EPS

from ..linear.reference import by_document
from .kimidelta import KimiDeltaAttention


def reference(layer: KimiDeltaAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: recurrence(layer, tokens), x, mask)


def recurrence(layer: KimiDeltaAttention, x: Tensor) -> Tensor:
    """The output for one document per row, (B, N, D)."""
    H, d, N = layer.num_heads, layer.key_dim, x.shape[1]
    qkv = layer.qkv(x)
    if layer.conv is not None:
        taps = layer.conv.weight  # (channels, size), of the current token first
        qkv = sum(F.pad(qkv, (0, 0, j, 0))[:, :N] * taps[:, j] for j in range(taps.shape[1]))
    q, k, v = (part.unflatten(-1, (H, -1)) for part in F.silu(qkv).split(layer.qkv_sizes, -1))  # (B, N, H, d)
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    step = torch.log1p((layer.step(x) + layer.decay.offset).exp()).unflatten(-1, (H, d))  # (B, N, H, d)
    alpha, beta = (-layer.decay.log_rate.exp()[:, None] * step).exp(), layer.strength(x).sigmoid()
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    S, heads = q.new_zeros(len(x), H, d, v.shape[-1]), []
    for t in range(N):
        b, key, value = beta[:, t, :, None, None], k[:, t, :, :, None], v[:, t, :, None]  # (B, H, d, 1), (B, H, 1, w)
        S = (eye - b * key @ key.mT) @ (alpha[:, t, :, :, None] * S) + b * key @ value
        heads.append(q[:, t, :, None] @ S / d**0.5)  # (B, H, 1, w)
    out = torch.cat([q.new_zeros(len(x), H, 0, v.shape[-1]), *heads], 2).transpose(1, 2)  # (B, N, H, w)
    if layer.norm is not None:
        out = out / (out.square().mean(-1, keepdim=True) + EPS).sqrt() * layer.norm.weight
    out = out.flatten(2)
    if layer.gate is not None:
        gate = layer.gate(x)
        out = out * (gate * gate.sigmoid() if layer.output_gate == "swish" else gate.sigmoid())
    return layer.output(out)
