"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import reference as multihead
from .chunked import ChunkedAttention


def reference(
    layer: ChunkedAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
) -> Tensor:
    """What ``layer(x)`` must give, multi-head attention where it looks; ``mask`` is Boolean (B, H, N, N), ``causal``
    already in it.
    """
    near = torch.tensor([[looks(layer, i, j) for j in range(x.shape[1])] for i in range(x.shape[1])])
    near = near.reshape(1, 1, x.shape[1], x.shape[1]).expand(len(x), layer.num_heads, -1, -1)
    return multihead(layer, x, near if mask is None else near & mask, attn_bias)


def looks(layer: ChunkedAttention, i: int, j: int) -> bool:
    """Whether token i may look at token j: in the same chunk, counted from the first token."""
    return i // layer.chunk_size == j // layer.chunk_size
