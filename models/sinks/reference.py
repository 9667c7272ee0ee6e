"""The formula of attention with sinks in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import merge_heads, scores_and_values
from .sinks import SinkAttention


def reference(
    layer: SinkAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    scores, V = scores_and_values(layer, x, attn_bias, context)  # (B, H, N, M), (B, H, M, d)
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    sink = layer.sink[:, None, None].expand(*scores.shape[:-1], 1)  # one more key, without a value
    weights = torch.cat([sink, scores], -1).softmax(-1)[..., 1:]
    return merge_heads(layer.output, weights @ V, mask)
