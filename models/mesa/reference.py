"""The regression of the paper, solved exactly for one token after another: the ground truth of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear.reference import by_document, convolved, normalized_and_gated
from .mesa import MesaNet


def reference(layer: MesaNet, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: recurrence(layer, tokens), x, mask)


def recurrence(layer: MesaNet, x: Tensor) -> Tensor:
    """The output for one document per row, (B, N, D)."""
    parts = F.silu(convolved(layer.conv, layer.qkv(x))).split(layer.qkv_sizes, -1)
    q, k, v = (part.unflatten(-1, (layer.num_heads, -1)) for part in parts)  # (B, N, H, d)
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    gamma = (-layer.decay.log_rate.exp() * F.softplus(layer.step(x) + layer.decay.offset)).exp()[..., None, None]
    beta = layer.strength(x).sigmoid()[..., None, None]  # (B, N, H, 1, 1)
    ridge = torch.diag_embed(0.25 + F.softplus(layer.ridge))  # (H, d, d)
    H, G, heads = torch.zeros_like(ridge), torch.zeros_like(ridge), []
    for t in range(x.shape[1]):
        H = gamma[:, t] * H + beta[:, t] * k[:, t, :, :, None] * k[:, t, :, None]
        G = gamma[:, t] * G + beta[:, t] * k[:, t, :, :, None] * v[:, t, :, None]
        solved = torch.linalg.solve(H + ridge, q[:, t])  # (B, H, d)
        heads.append((solved[:, :, None] @ G).squeeze(2))
    return normalized_and_gated(layer, torch.stack(heads, 1) if heads else v, x)
