"""The recurrence of the paper, one token at a time: the ground truth of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.nn.recurrent import RecurrentBase

from ..linear.reference import by_document, convolved, normalized_and_gated
from .gateddeltanet import GatedDeltaNet


def reference(layer: GatedDeltaNet, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: recurrence(layer, tokens), x, mask)


def recurrence(layer: GatedDeltaNet, x: Tensor) -> Tensor:
    """The output for one document per row, (B, N, D)."""
    q, k, v = project(layer, x)
    alpha = (-layer.decay.log_rate.exp() * F.softplus(layer.step(x) + layer.decay.offset)).exp()  # (B, N, H)
    beta = layer.strength(x).sigmoid() * (2 if layer.allow_neg_eigval else 1)
    return normalized_and_gated(layer, delta_rule(q, k, v, alpha, beta), x)


def project(layer: RecurrentBase, x: Tensor) -> tuple[Tensor, ...]:
    """Queries and keys of norm 1, (B, N, H, d), and values."""
    qkv = F.silu(convolved(layer.conv, layer.qkv(x))).split(layer.qkv_sizes, -1)
    q, k, v = (part.unflatten(-1, (layer.num_heads, -1)) for part in qkv)
    return *(t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k)), v


def delta_rule(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """What the queries read, (B, N, H, w); ``alpha`` and ``beta`` are (B, N, H)."""
    (B, N, H, d), outs = q.shape, []
    S = q.new_zeros(B, H, d, v.shape[-1])
    for t in range(N):
        key, value = k[:, t, :, :, None], v[:, t, :, None]  # (B, H, d, 1), (B, H, 1, w)
        S = alpha[:, t, :, None, None] * S
        S = S + beta[:, t, :, None, None] * key @ (value - key.mT @ S)
        outs.append(q[:, t, :, None] @ S / d**0.5)  # (B, H, 1, w)
    return torch.cat(outs, 2).transpose(1, 2)
