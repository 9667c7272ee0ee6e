"""The recurrence of the paper, one token at a time: the ground truth of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gateddeltanet.reference import project
from ..linear.reference import by_document, normalized_and_gated
from .kimidelta import KimiDeltaAttention


def reference(layer: KimiDeltaAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: recurrence(layer, tokens), x, mask)


def recurrence(layer: KimiDeltaAttention, x: Tensor) -> Tensor:
    """The output for one document per row, (B, N, D)."""
    H, d, N = layer.num_heads, layer.key_dim, x.shape[1]
    q, k, v = project(layer, x)  # (B, N, H, d)
    step = torch.log1p((layer.step(x) + layer.decay.offset).exp()).unflatten(-1, (H, d))  # (B, N, H, d)
    alpha, beta = (-layer.decay.log_rate.exp()[:, None] * step).exp(), layer.strength(x).sigmoid()
    eye = torch.eye(d, dtype=x.dtype, device=x.device)
    S, heads = q.new_zeros(len(x), H, d, v.shape[-1]), []
    for t in range(N):
        b, key, value = beta[:, t, :, None, None], k[:, t, :, :, None], v[:, t, :, None]  # (B, H, d, 1), (B, H, 1, w)
        S = (eye - b * key @ key.mT) @ (alpha[:, t, :, :, None] * S) + b * key @ value
        heads.append(q[:, t, :, None] @ S / d**0.5)  # (B, H, 1, w)
    out = torch.cat([q.new_zeros(len(x), H, 0, v.shape[-1]), *heads], 2).transpose(1, 2)  # (B, N, H, w)
    return normalized_and_gated(layer, out, x)
