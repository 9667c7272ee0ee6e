"""The formula of the paper in plain PyTorch, used as ground truth by the tests."""

from __future__ import annotations

import math

from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, position_bias, project_qkv, rotate
from .gated import GatedAttention


def reference(
    layer: GatedAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads)
    Q, K = rotate(Q, layer.positions), rotate(K, layer.positions)
    scores = Q @ K.mT / math.sqrt(layer.head_dim) + position_bias(layer.positions, Q, K)  # (B, H, N, M)
    heads = masked_softmax(scores if attn_bias is None else scores + attn_bias, mask) @ V  # (B, H, N, d)
    gates = layer.gate.projection(x).sigmoid().unflatten(-1, (layer.num_heads, -1))  # (B, N, H, d), or (B, N, H, 1)
    return merge_heads(layer.output, heads * gates.transpose(1, 2), mask)
