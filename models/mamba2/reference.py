"""The recurrence of the paper, one token at a time: the ground truth of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear.reference import by_document
from .mamba2 import Mamba2


def reference(layer: Mamba2, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: recurrence(layer, tokens), x, mask)


def recurrence(layer: Mamba2, x: Tensor) -> Tensor:
    """The output for one document per row, (B, N, D)."""
    H, G, N = layer.num_heads, layer.num_kv_heads, x.shape[1]
    u = layer.qkv(x)
    if layer.conv is not None:
        taps = layer.conv.weight  # (channels, size), of the current token first
        u = sum(F.pad(u, (0, 0, j, 0))[:, :N] * taps[:, j] for j in range(taps.shape[1])) + layer.conv.bias
    C, B, X = F.silu(u).split(layer.qkv_sizes, -1)
    C, B = (part.unflatten(-1, (G, -1)).repeat_interleave(H // G, 2) for part in (C, B))  # (B, N, H, state)
    X = X.unflatten(-1, (H, -1))  # (B, N, H, w)
    delta = F.softplus(layer.step(x) + layer.decay.offset)  # (B, N, H)
    alpha = (-layer.decay.log_rate.exp() * delta).exp()
    S, heads = x.new_zeros(len(x), H, B.shape[-1], X.shape[-1]), []
    for t in range(N):
        S = alpha[:, t, :, None, None] * S + (delta[:, t, :, None] * B[:, t])[..., None] * X[:, t, :, None]
        heads.append((C[:, t, :, None] @ S).squeeze(2) + layer.skip[:, None] * X[:, t])
    y = torch.stack(heads, 1).flatten(2) * F.silu(layer.gate(x))
    y = y / (y.square().mean(-1, keepdim=True) + layer.norm.eps).sqrt() * layer.norm.weight
    return layer.output(y)
