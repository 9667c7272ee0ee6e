"""The formula in slow plain lines: the truth in every test."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attnlab.positions import Rotary

from ..multihead.reference import distance, turned
from .bigbird import BigBirdAttention


def reference(
    layer: BigBirdAttention,
    x: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """What ``layer(x)`` must give; ``mask`` is Boolean (B, H, N, N), ``causal`` already in it."""
    (B, N, D), h = x.shape, layer.num_heads
    d_k = D // h
    W_Q, W_K, W_V = layer.qkv.weight.split(D)
    b_Q, b_K, b_V = (0, 0, 0) if layer.qkv.bias is None else layer.qkv.bias.split(D)
    Q, K, V = x @ W_Q.T + b_Q, x @ W_K.T + b_K, x @ W_V.T + b_V
    if isinstance(layer.positions, Rotary):
        Q, K = turned(Q, d_k, layer.positions), turned(K, d_k, layer.positions)

    rows = []
    for b in range(B):
        for i in range(N):
            heads, blind = [], True
            for head in range(h):
                own = slice(head * d_k, (head + 1) * d_k)
                linked = [j for j in range(N) if looks(layer, i, j)]
                seen = [j for j in linked if mask is None or mask[b, head, i, j]]
                if not seen:
                    heads.append(torch.zeros_like(Q[b, i, own]))
                    continue
                blind = False
                scores = [
                    Q[b, i, own] @ K[b, j, own] / math.sqrt(d_k)
                    + (0 if bias is None else bias[b, head, i, j])
                    + distance(layer, head, j - i)
                    for j in seen
                ]
                highest = max(score.item() for score in scores)
                powers = [torch.exp(score - highest) for score in scores]
                heads.append(sum(p * V[b, j, own] for p, j in zip(powers, seen, strict=True)) / sum(powers))
            rows.append(torch.zeros_like(x[b, i]) if blind else layer.output(torch.cat(heads)))
    return torch.stack(rows).reshape(B, N, D)


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
