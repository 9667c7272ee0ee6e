"""The formula in eager PyTorch: global tokens have projections of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, scores_and_values
from .longformer import LongformerAttention


def reference(
    layer: LongformerAttention, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, N) and includes ``causal``."""
    (B, N, _), H, g = x.shape, layer.num_heads, layer.num_global
    i = torch.arange(N)
    local = (i[:, None] - i).abs() < layer.window_size
    allowed = (local | (i < g) | (i < g)[:, None]).expand(B, H, -1, -1)
    allowed = allowed if mask is None else allowed & mask

    def heads(qkv: torch.nn.Linear) -> Tensor:
        scores, V = scores_and_values(layer, x, attn_bias, qkv=qkv)
        return masked_softmax(scores, allowed) @ V

    is_global = (i < g)[:, None]  # (N, 1)
    return merge_heads(layer.output, torch.where(is_global, heads(layer.qkv_global), heads(layer.qkv)), allowed)
