"""The formula in eager PyTorch: multi-head attention under the mask of the chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import reference as multihead
from .chunked import ChunkedAttention


def reference(
    layer: ChunkedAttention, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, N) and includes ``causal``."""
    chunk = torch.arange(x.shape[1]) // layer.chunk_size
    allowed = (chunk[:, None] == chunk).expand(len(x), layer.num_heads, -1, -1)
    return multihead(layer, x, allowed if mask is None else allowed & mask, attn_bias)
