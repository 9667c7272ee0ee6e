"""Brute force: the projections of a layer around PyTorch's attention under a matrix of the paper's sets, by loops."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Set = Callable[[int, int, int], bool]
"""Whether in head h query i looks at key j."""


def matrix(looks: Set, heads: int, length: int, causal: bool, real: Tensor) -> Tensor:
    """Boolean (B, H, N, N), real keys alone."""
    rows = [
        [[looks(h, i, j) and (j <= i or not causal) for j in range(length)] for i in range(length)]
        for h in range(heads)
    ]
    return torch.tensor(rows) & real[:, None, None, :]


def heads_of(qkv: nn.Linear, x: Tensor, heads: int) -> list[Tensor]:
    """Queries, keys and values, (B, H, N, d) each."""
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv(x).chunk(3, -1)]


def attended(q: Tensor, k: Tensor, v: Tensor, permitted: Tensor) -> Tensor:
    """What each head reads, (B, H, N, d); zero where it may look at nothing."""
    blind = ~permitted.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=permitted | blind)
    return out.masked_fill(blind, 0.0)


def tokens(*shape: int, dtype: torch.dtype) -> Tensor:
    """The same numbers in either precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def lengths_of(B: int, N: int, padded: bool) -> Tensor:
    """How many tokens are real, of each item."""
    return torch.tensor([N - 4, N, N - 1][:B]) if padded else torch.full((B,), N)


def same_with_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor], atol: float) -> None:
    """Outputs and the gradients of ``inputs``, large ones by their size."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    wave = tokens(*ours.shape, dtype=ours.dtype) / len(ours) ** 0.5
    found, wanted = (torch.autograd.grad((out * wave).sum(), inputs, retain_graph=True) for out in (ours, theirs))
    for mine, other in zip(found, wanted, strict=True):
        scale = 1 + other.abs()
        torch.testing.assert_close(mine / scale, other / scale, rtol=0, atol=atol)
