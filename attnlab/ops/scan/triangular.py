"""The inverse of unit lower triangular matrices, by products of blocks.

A triangular solve takes one matrix at a time and is slow for many small ones.

Axes: C rows and columns, s rows and columns of a block, m blocks on the diagonal; leading axes are batched.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16
"""Rows of the blocks that are solved by substitution; larger ones are products of these."""


def unit_lower_inverse(matrix: Tensor) -> Tensor:
    """Return the inverse of ``I`` plus the part of ``matrix`` (..., C, C) below the diagonal."""
    if torch.compiler.is_compiling():  # dynamo does not trace a function with a jvp
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.solve_triangular(matrix, identity, upper=False, unitriangular=True)
    inverse: Tensor = _Inverse.apply(matrix)  # type: ignore[no-untyped-call]
    return inverse


class _Inverse(torch.autograd.Function):
    """``T = (I + M)⁻¹`` with ``dM = -Tᵀ dT Tᵀ``, which needs none of the blocks."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        C = matrix.shape[-1]
        whole = max(BLOCK, 1 << (C - 1).bit_length())
        if whole > C:
            matrix = F.pad(matrix, (0, whole - C, 0, whole - C))
        inverse, identity = torch.zeros_like(matrix), torch.eye(BLOCK, dtype=matrix.dtype, device=matrix.device)
        solved = torch.linalg.solve_triangular(_diagonal(matrix, BLOCK), identity, upper=False, unitriangular=True)
        _diagonal(inverse, BLOCK).copy_(solved)
        size = BLOCK
        while size < whole:  # (I + M)⁻¹ of two blocks: the product below the diagonal is -second⁻¹ M first⁻¹
            pair, below = _diagonal(inverse, 2 * size), _diagonal(matrix, 2 * size)[..., size:, :size]
            first, second = pair[..., :size, :size], pair[..., size:, size:]
            pair[..., size:, :size].copy_(second @ (below @ first)).neg_()
            size *= 2
        return inverse if whole == C else inverse[..., :C, :C].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ gradient @ inverse.mT).tril(-1)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse @ tangent.tril(-1) @ inverse)


def _diagonal(matrix: Tensor, size: int) -> Tensor:
    """Return the blocks on the diagonal, (..., C, C) to (..., m, s, s)."""
    blocks = matrix.unflatten(-1, (-1, size)).unflatten(-3, (-1, size))  # (..., m, s, m, s)
    return blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
