"""The formula of the paper in plain PyTorch, used as ground truth by the tests."""

from __future__ import annotations

import math

from torch import Tensor

from ..multihead.reference import masked_softmax, merge, position_bias, project
from .gated import GatedAttention


def reference(
    layer: GatedAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """Return what ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    Q, K, V = project(layer, x, context)
    scores = Q @ K.mT / math.sqrt(layer.head_dim) + position_bias(layer, x.shape[1], K.shape[2])
    heads = masked_softmax(scores if attn_bias is None else scores + attn_bias, mask) @ V  # (B, H, N, d)
    gates = layer.gate.projection(x).sigmoid().unflatten(-1, (layer.num_heads, -1))  # (B, N, H, d), or (B, N, H, 1)
    return merge(layer, heads * gates.transpose(1, 2), mask)
