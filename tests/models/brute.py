"""Helpers of the parity tests: a pattern as a matrix by loops, PyTorch's attention under it, and comparisons."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Set = Callable[[int, int, int], bool]
"""Whether query i may attend to key j in head h."""


def matrix(allowed: Set, heads: int, length: int, causal: bool, real: Tensor) -> Tensor:
    """The pattern as a Boolean matrix (B, H, N, N), without padding keys."""
    rows = [
        [[allowed(h, i, j) and (j <= i or not causal) for j in range(length)] for i in range(length)]
        for h in range(heads)
    ]
    return torch.tensor(rows) & real[:, None, None, :]


def heads_of(qkv: nn.Linear, x: Tensor, heads: int) -> list[Tensor]:
    """Queries, keys and values, (B, H, N, d) each."""
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv(x).chunk(3, -1)]


def attended(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """The output of each head, (B, H, N, d); zero in fully masked rows."""
    fully_masked = ~allowed.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed | fully_masked)
    return out.masked_fill(fully_masked, 0.0)


def tokens(*shape: int, dtype: torch.dtype) -> Tensor:
    """The same random values in either precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def lengths_of(B: int, N: int, padded: bool) -> Tensor:
    """The number of real tokens of each item."""
    return torch.tensor([N - 4, N, N - 1][:B]) if padded else torch.full((B,), N)


def same_with_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor], atol: float) -> None:
    """Compare outputs and the gradients of ``inputs``, large gradients relative to their size."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    direction = tokens(*ours.shape, dtype=ours.dtype) / len(ours) ** 0.5
    grads, expected = (
        torch.autograd.grad((out * direction).sum(), inputs, retain_graph=True) for out in (ours, theirs)
    )
    for mine, other in zip(grads, expected, strict=True):
        scale = 1 + other.abs()
        torch.testing.assert_close(mine / scale, other / scale, rtol=0, atol=atol)
