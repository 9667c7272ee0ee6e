"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .template import TemplateAttention


def reference(layer: TemplateAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must give; ``mask`` is Boolean (B, 1, N, N), ``causal`` already in it."""
    B, N, D = x.shape
    Q, K, V = layer.query(x), layer.key(x), layer.value(x)
    rows = []
    for b in range(B):
        for i in range(N):
            seen = [j for j in range(N) if mask is None or mask[b, 0, i, j]]
            if not seen:
                rows.append(torch.zeros_like(x[b, i]))
                continue
            scores = [Q[b, i] @ K[b, j] / math.sqrt(D) for j in seen]
            highest = max(score.item() for score in scores)
            powers = [torch.exp(score - highest) for score in scores]
            answer = sum(power * V[b, j] for power, j in zip(powers, seen, strict=True)) / sum(powers)
            rows.append(layer.output(answer))
    return torch.stack(rows).reshape(B, N, D)
