"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import reference as multihead
from .strided import StridedAttention


def reference(
    layer: StridedAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
) -> Tensor:
    """What ``layer(x)`` must give, multi-head attention where it looks; ``mask`` is Boolean (B, H, N, N), ``causal``
    already in it.
    """
    places = range(x.shape[1])
    near = torch.tensor(
        [[[looks(layer, head, i, j) for j in places] for i in places] for head in range(layer.num_heads)]
    )
    near = near.reshape(1, layer.num_heads, len(places), len(places)).expand(len(x), -1, -1, -1)
    return multihead(layer, x, near if mask is None else near & mask, attn_bias)


def looks(layer: StridedAttention, head: int, i: int, j: int) -> bool:
    """Whether token i may look at token j: A^(1) of the paper in a near head, A^(2) in a far one."""
    l, c = layer.stride, layer.summary  # noqa: E741  the paper's
    if layer.pattern == "strided":
        return abs(i - j) <= l if layer.near[head] else (i - j) % l == 0
    return i // l == j // l if layer.near[head] else j % l >= l - c
