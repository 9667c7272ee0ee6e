"""The recurrence of the paper, one token at a time: the ground truth of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.nn.recurrent import EPS

from ..linear.reference import by_document, convolved
from .mamba2 import Mamba2


def reference(layer: Mamba2, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: recurrence(layer, tokens), x, mask)


def recurrence(layer: Mamba2, x: Tensor) -> Tensor:
    """The output for one document per row, (B, N, D)."""
    H, G, N = layer.num_heads, layer.num_kv_heads, x.shape[1]
    C, B, X = F.silu(convolved(layer.conv, layer.qkv(x))).split(layer.qkv_sizes, -1)
    C, B = (part.unflatten(-1, (G, -1)).repeat_interleave(H // G, 2) for part in (C, B))  # (B, N, H, state)
    X = X.unflatten(-1, (H, -1))  # (B, N, H, w)
    delta = F.softplus(layer.step(x) + layer.decay.offset)  # (B, N, H)
    alpha = (-layer.decay.log_rate.exp() * delta).exp()
    S, heads = x.new_zeros(len(x), H, B.shape[-1], X.shape[-1]), []
    for t in range(N):
        S = alpha[:, t, :, None, None] * S + (delta[:, t, :, None] * B[:, t])[..., None] * X[:, t, :, None]
        heads.append((C[:, t, :, None] @ S).squeeze(2) + layer.skip[:, None] * X[:, t])
    y = torch.stack(heads, 1).flatten(2) * F.silu(layer.z(x))
    y = y / (y.square().mean(-1, keepdim=True) + EPS).sqrt() * layer.inner_norm.weight
    out: Tensor = layer.output(y)
    return out
