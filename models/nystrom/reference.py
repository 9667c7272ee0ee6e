"""The formula of the paper in eager PyTorch, one sequence at a time: the ground truth of the tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..multihead.reference import merge_heads, project_qkv
from .nystrom import NystromAttention


def reference(layer: NystromAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N) and excludes the same keys for all queries."""
    Q, K, V = project_qkv(layer.qkv, x, None, layer.num_heads)
    scale, heads = 1 / math.sqrt(layer.head_dim), []
    for b in range(len(x)):
        real = [j for j in range(x.shape[1]) if mask is None or bool(mask[b, 0, :, j].any())]
        keys, values = K[b][:, real], V[b].clone()
        values[:, [j for j in range(x.shape[1]) if j not in real]] = 0
        m = min(layer.num_landmarks, len(real))
        segments = [[r for r in range(len(real)) if r * m // len(real) == s] for s in range(m)]
        means = [torch.stack([t[:, s].mean(1) for s in segments], 1) if m else t for t in (Q[b][:, real], keys)]
        first = (Q[b] @ means[1].mT * scale).softmax(-1)  # (H, N, m)
        A = (means[0] @ means[1].mT * scale).softmax(-1)  # (H, m, m)
        last = (means[0] @ keys.mT * scale).softmax(-1)  # (H, m, n)
        out = first @ (pseudo_inverse(A, layer) @ (last @ values[:, real])) if m else torch.zeros_like(values)
        if layer.conv is not None:
            reach, n = layer.conv_kernel // 2, x.shape[1]
            for i in range(n):
                for j in range(max(0, i - reach), min(n, i + reach + 1)):
                    out[:, i] = out[:, i] + layer.conv.weight[:, 0, j - i + reach] * values[:, j]
        heads.append(out)
    return merge_heads(layer.output, torch.stack(heads) if heads else Q, mask)


def pseudo_inverse(A: Tensor, layer: NystromAttention) -> Tensor:
    """The exact one, or some steps of the iteration of equation 11."""
    if layer.inverse == "exact":
        return torch.linalg.pinv(A)
    eye = torch.eye(A.shape[-1], dtype=A.dtype)
    Z = A.mT / A.sum(-2).amax(-1)[:, None, None]  # the rows sum to 1
    for _ in range(layer.iterations):
        Z = Z / 4 @ (13 * eye - A @ Z @ (15 * eye - A @ Z @ (7 * eye - A @ Z)))
    return Z
