"""The recurrence of the paper, one token at a time: the ground truth of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linear.reference import by_document, convolved, normalized_and_gated
from .gatedlinear import GatedLinearAttention


def reference(layer: GatedLinearAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: recurrence(layer, tokens), x, mask)


def recurrence(layer: GatedLinearAttention, x: Tensor) -> Tensor:
    """``S_t = diag(α_t) S_{t-1} + k_tᵀ v_t`` and ``q_t S_t / √d``; one document per row, (B, N, D)."""
    qkv = convolved(layer.conv, layer.qkv(x)).split(layer.qkv_sizes, -1)
    q, k, v = (part.unflatten(-1, (layer.num_heads, -1)) for part in qkv)  # (B, N, H, d | w)
    gates = x @ layer.decay.down.weight.T @ layer.decay.up.weight.T + layer.decay.up.bias
    alpha = (gates.sigmoid() ** (1 / layer.decay_temperature)).view_as(k)
    S, heads = q.new_zeros(len(x), *q.shape[2:], v.shape[-1]), []
    for t in range(x.shape[1]):
        S = alpha[:, t, :, :, None] * S + k[:, t, :, :, None] * v[:, t, :, None]
        heads.append((q[:, t, :, None] @ S).squeeze(2) / layer.key_dim**0.5)  # (B, H, w)
    return normalized_and_gated(layer, torch.stack(heads, 1), x)
