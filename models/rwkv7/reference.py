"""The recurrence of the paper, one token at a time: the ground truth of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..linear.reference import by_document
from .rwkv7 import LARGEST_RATE, RWKV7


def reference(layer: RWKV7, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: recurrence(layer, tokens), x, mask)


def recurrence(layer: RWKV7, x: Tensor) -> Tensor:
    """The output for one document per row, (B, N, D)."""
    H, d, N = layer.num_heads, layer.head_dim, x.shape[1]
    previous = F.pad(x, (0, 0, 1, 0))[:, :N]
    x_r, x_k, x_v, x_w, x_a, x_g = (torch.lerp(x, previous, part) for part in layer.shift)
    k = layer.key(x_k)
    w = (-LARGEST_RATE * layer.decay(x_w).sigmoid()).exp()
    a, g = layer.rate(x_a).sigmoid(), layer.head_gate(x_g)
    kappa, replacement = k * layer.removal, k * torch.lerp(torch.ones_like(a), a, layer.replacement)
    parts = layer.receptance(x_r), layer.value(x_v), w, a, kappa, replacement
    r, v, w, a, kappa, k = (part.unflatten(-1, (H, d)).unsqueeze(-1) for part in parts)  # (B, N, H, d, 1)
    kappa = kappa / (kappa.square().sum(-2, keepdim=True) + 1e-6).sqrt()
    wkv, heads = x.new_zeros(len(x), H, d, d), [x.new_zeros(len(x), H, d, 0)]  # rows are features of the value
    for t in range(N):
        transition = torch.diag_embed(w[:, t, ..., 0]) - kappa[:, t] @ (a[:, t] * kappa[:, t]).mT
        wkv = wkv @ transition + v[:, t] @ k[:, t].mT
        heads.append(wkv @ r[:, t])
    out = torch.cat(heads, -1).permute(0, 3, 1, 2)  # (B, N, H, d)
    if layer.head_norm is not None:
        variance, mean = torch.var_mean(out, -1, keepdim=True, correction=0)
        out = (out - mean) / (variance + layer.head_norm.eps).sqrt()
        out = out * layer.head_norm.weight.view(H, d) + layer.head_norm.bias.view(H, d)
    bonus = (r * k * layer.bonus.view(H, d, 1)).sum(-2)  # (B, N, H, 1)
    return layer.output((out + bonus * v.squeeze(-1)).flatten(2) * g)
