"""The formula in eager PyTorch: multi-head attention under the mask of the window."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import reference as multihead
from .slidingwindow import SlidingWindowAttention


def reference(
    layer: SlidingWindowAttention, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, N) and includes ``causal``."""
    i = torch.arange(x.shape[1])
    distance, r = (i[:, None] - i).abs(), layer.dilation
    window = (distance < layer.window_size * r) & (distance % r == 0)
    allowed = window.expand(len(x), layer.num_heads, -1, -1)
    return multihead(layer, x, allowed if mask is None else allowed & mask, attn_bias)
