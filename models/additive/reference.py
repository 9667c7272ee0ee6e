"""The formula of additive attention in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, position_bias, project_qkv
from .additive import AdditiveAttention


def reference(
    layer: AdditiveAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads)
    hidden = torch.tanh(Q.unsqueeze(3) + K.unsqueeze(2))  # (B, H, N, M, d)
    scores = (hidden * layer.score[:, None, None]).sum(-1) + position_bias(layer.positions, Q, K)
    weights = masked_softmax(scores if attn_bias is None else scores + attn_bias, mask)
    return merge_heads(layer.output, weights @ V, mask)
