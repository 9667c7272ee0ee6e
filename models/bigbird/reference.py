"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import reference as multihead
from .bigbird import BigBirdAttention


def reference(
    layer: BigBirdAttention,
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


def looks(layer: BigBirdAttention, i: int, j: int) -> bool:
    """Whether token i may look at token j: near, global, or drawn by the later of their blocks."""
    a, b = i // layer.block, j // layer.block
    near = abs(a - b) <= layer.window // 2
    return near or min(a, b) < layer.num_global or min(a, b) in drawn(layer, max(a, b))


def drawn(layer: BigBirdAttention, block: int) -> list[int]:
    """The blocks before this one that it draws: numbers that follow from the seed, modulo how many there are."""
    prime, seed, found = 2**31 - 1, int(layer.seed), []
    for draw in range(layer.num_random):
        number = (block * 48271 + (draw + 1) * 69621 + seed) % prime
        for _ in range(3):
            number = (number**2 + seed + 40692) % prime
        found.append(number % max(block, 1))
    return found
