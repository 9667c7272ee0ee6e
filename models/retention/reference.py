"""The parallel form of the paper, eager and quadratic: the ground truth of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linear.reference import by_document, convolved, normalized_and_gated
from ..multihead.reference import rotate, split_heads
from .retention import Retention


def reference(layer: Retention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and contains ``causal``."""
    return by_document(lambda tokens: retention(layer, tokens), x, mask)


def retention(layer: Retention, x: Tensor) -> Tensor:
    """``(Q Kᵀ / √d ⊙ D) V`` with ``D_nm = γ^(n - m)`` for n ≥ m and 0 otherwise; one document per row, (B, N, D)."""
    qkv = convolved(layer.conv, layer.qkv(x)).split(layer.qkv_sizes, -1)
    Q, K, V = (split_heads(part, layer.num_heads) for part in qkv)  # (B, H, N, d | w)
    Q, K = rotate(Q, layer.positions), rotate(K, layer.positions)
    gamma = 1 - 2.0 ** -torch.tensor(layer.rates).to(x) / layer.shortest_memory  # (H,)
    distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])  # n - m
    D = (gamma[:, None, None] ** distance.clamp(min=0)).tril()  # (H, N, N)
    heads = (Q @ K.mT / layer.key_dim**0.5 * D) @ V
    return normalized_and_gated(layer, heads.transpose(1, 2), x)
