"""The formula of the paper in plain PyTorch: multi-head attention under the block pattern as a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import reference as multihead
from .bigbird import BigBirdAttention


def reference(
    layer: BigBirdAttention, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, N) and includes ``causal``."""
    block = torch.arange(x.shape[1]) // layer.block_size
    j = torch.arange(-(-x.shape[1] // layer.block_size))
    i = j[:, None]
    pairs = ((i - j).abs() <= layer.window_size // 2) | (torch.minimum(i, j) < layer.num_global)
    for later in j.tolist():
        for earlier in drawn(layer, later):
            pairs[later, earlier] = pairs[earlier, later] = True
    allowed = pairs[block][:, block].expand(len(x), layer.num_heads, -1, -1)
    return multihead(layer, x, allowed if mask is None else allowed & mask, attn_bias)


def drawn(layer: BigBirdAttention, block: int) -> list[int]:
    """The earlier blocks that a block draws, from pseudo-random numbers that depend on the seed."""
    prime, seed, blocks = 2**31 - 1, int(layer.seed), []
    for draw in range(layer.num_random):
        number = (block * 48271 + (draw + 1) * 69621 + seed) % prime
        for _ in range(3):
            number = (number**2 + seed + 40692) % prime
        blocks.append(number % max(block, 1))
    return blocks
