"""The formula of attention with sinks in eager PyTorch.

Axes: B batch, H heads, N queries, M keys, D embed_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..multihead.reference import merge_heads, position_bias, project_qkv, rotate
from .sinks import SinkAttention


def reference(
    layer: SinkAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads)
    Q, K = rotate(Q, layer.positions), rotate(K, layer.positions)
    scores = Q @ K.mT / math.sqrt(layer.head_dim) + position_bias(layer.positions, Q, K)  # (B, H, N, M)
    scores = scores if attn_bias is None else scores + attn_bias
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    sink = layer.sink[:, None, None].expand(*scores.shape[:-1], 1)  # one more key, without a value
    weights = torch.cat([sink, scores], -1).softmax(-1)[..., 1:]
    return merge_heads(layer.output, weights @ V, mask)
