"""The recurrence of the paper, one token at a time: the ground truth of the tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.nn.recurrent import EPS, RecurrentBase

from ..linear.reference import by_document
from .gateddeltanet import GatedDeltaNet


def reference(layer: GatedDeltaNet, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: recurrence(layer, tokens), x, mask)


def recurrence(layer: GatedDeltaNet, x: Tensor) -> Tensor:
    """The output for one document per row, (B, N, D)."""
    q, k, v = project(layer, x)
    alpha = (-layer.decay.log_rate.exp() * F.softplus(layer.step(x) + layer.decay.offset)).exp()  # (B, N, H)
    beta = layer.strength(x).sigmoid() * (2 if layer.allow_neg_eigval else 1)
    return merge(layer, delta_rule(q, k, v, alpha, beta), x)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """What the queries read, (B, N, H, w); ``alpha`` and ``beta`` are (B, N, H)."""
    (B, N, H, d), outs = q.shape, []
    S = q.new_zeros(B, H, d, v.shape[-1])
    for t in range(N):
        key, value = k[:, t, :, :, None], v[:, t, :, None]  # (B, H, d, 1), (B, H, 1, w)
        S = alpha[:, t, :, None, None] * S
        S = S + beta[:, t, :, None, None] * key @ (value - key.mT @ S)
        outs.append(q[:, t, :, None] @ S / d**0.5)  # (B, H, 1, w)
    return torch.cat(outs, 2).transpose(1, 2) if outs else v


def project(layer: RecurrentBase, x: Tensor) -> tuple[Tensor, ...]:
    """Queries and keys of norm 1, (B, N, H, d), and values, after the short convolution and SiLU."""
    qkv = layer.qkv(x)
    if layer.conv is not None:
        taps = layer.conv.weight  # (channels, size), of the current token first
        qkv = sum(F.pad(qkv, (0, 0, j, 0))[:, : x.shape[1]] * taps[:, j] for j in range(taps.shape[1]))
    q, k, v = (part.unflatten(-1, (layer.num_heads, -1)) for part in F.silu(qkv).split(layer.qkv_sizes, -1))
    return *(t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k)), v


def merge(layer: RecurrentBase, heads: Tensor, x: Tensor) -> Tensor:
    """The normalized and gated heads, (B, N, H, w), times W_O."""
    if layer.norm is not None:
        heads = heads / (heads.square().mean(-1, keepdim=True) + EPS).sqrt() * layer.norm.weight
    if layer.gate is None:
        return layer.output(heads.flatten(2))
    gate = layer.gate(x)
    return layer.output(heads.flatten(2) * gate.sigmoid() * (gate if layer.output_gate == "swish" else 1))
