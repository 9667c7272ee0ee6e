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
    length = x.shape[1]
    pattern = torch.tensor([[attends(layer, i, j) for j in range(length)] for i in range(length)])
    pattern = pattern.reshape(1, 1, length, length).expand(len(x), layer.num_heads, -1, -1)
    return multihead(layer, x, pattern if mask is None else pattern & mask, attn_bias)


def attends(layer: BigBirdAttention, i: int, j: int) -> bool:
    """Whether token i may attend to token j: local, global, or drawn by the later of their blocks."""
    a, b = i // layer.block_size, j // layer.block_size
    local = abs(a - b) <= layer.window_size // 2
    return local or min(a, b) < layer.num_global or min(a, b) in drawn(layer, max(a, b))


def drawn(layer: BigBirdAttention, block: int) -> list[int]:
    """The earlier blocks that a block draws, from pseudo-random numbers that depend on the seed."""
    prime, seed, blocks = 2**31 - 1, int(layer.seed), []
    for draw in range(layer.num_random):
        number = (block * 48271 + (draw + 1) * 69621 + seed) % prime
        for _ in range(3):
            number = (number**2 + seed + 40692) % prime
        blocks.append(number % max(block, 1))
    return blocks
