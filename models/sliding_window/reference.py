"""The formula of the paper in plain PyTorch, used as ground truth by the tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .sliding_window import SlidingWindowAttention


def reference(layer: SlidingWindowAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, 1, N, N) and includes ``causal``."""
    Q, K, V = layer.query(x), layer.key(x), layer.value(x)  # (B, N, D) each
    scores = Q @ K.mT / math.sqrt(x.shape[-1])  # (B, N, N)
    if mask is None:
        return layer.output(scores.softmax(-1) @ V)
    allowed = mask.squeeze(1)
    empty = ~allowed.any(-1, keepdim=True)  # fully masked rows
    weights = scores.masked_fill(~(allowed | empty), -torch.inf).softmax(-1)
    return layer.output(weights @ V).masked_fill(empty, 0)
