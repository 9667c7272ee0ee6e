"""The recurrence of the paper, one token at a time: the ground truth of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear.reference import by_document, convolved, normalized_and_gated
from .gateddeltanet import GatedDeltaNet


def reference(layer: GatedDeltaNet, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: recurrence(layer, tokens), x, mask)


def recurrence(layer: GatedDeltaNet, x: Tensor) -> Tensor:
    """The output for one document per row, (B, N, D)."""
    H, N = layer.num_heads, x.shape[1]
    qkv = F.silu(convolved(layer.conv, layer.qkv(x))).split(layer.qkv_sizes, -1)
    q, k, v = (part.unflatten(-1, (H, -1)) for part in qkv)  # (B, N, H, d)
        part.unflatten(-1, (H, -1)) for part in F.silu(convolved(layer.conv, layer.qkv(x))).split(layer.qkv_sizes, -1)
    )  # (B, N, H, d)
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    alpha = (-layer.decay.log_rate.exp() * F.softplus(layer.step(x) + layer.decay.offset)).exp()[
        ..., None, None
    ]  # (B, N, H, 1, 1)
    beta = layer.strength(x).sigmoid()[..., None, None]
    S, heads = q.new_zeros(len(x), H, q.shape[-1], v.shape[-1]), []
    for t in range(N):
        key, value = k[:, t, :, :, None], v[:, t, :, None]  # (B, H, d, 1), (B, H, 1, w)
        S = alpha[:, t] * S
        S = S + beta[:, t] * key @ (value - key.mT @ S)
        heads.append(q[:, t, :, None] @ S / layer.key_dim**0.5)  # (B, H, 1, w)
    return normalized_and_gated(layer, torch.cat(heads, 2).transpose(1, 2), x)
