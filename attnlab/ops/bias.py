"""Biases of the scores: tensors, and biases that depend on the distance alone and are materialized only in parts.

Axes: B batch, H heads, N queries, M keys.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from attnlab.masks.bound import Index, positions


class RelativeBias:
    """One value per head and distance, in H · (N + M - 1) values; the matrix is materialized only in tiles.

    It can be added to a tensor that broadcasts to (B, H, N, M).

    Args:
        line: (H, N + M - 1), the values for the distances (key minus query) -(M - 1) to N - 1, the queries aligned
            with the keys at the end; differentiable.
        queries: N.
        keys: M.
        matrix: a further term, four axes.

    Raises:
        ValueError: for a line of another length.
    """

    def __init__(self, line: Tensor, queries: int, keys: int, matrix: Tensor | None = None) -> None:
        if line.dim() != 2 or line.shape[1] + 1 < queries + keys:
            raise ValueError(
                f"line must have shape (heads, {queries + keys - 1}) for {queries} queries and {keys} keys, not "
                f"{tuple(line.shape)}"
            )
        self.line, self.queries, self.keys, self.matrix = line, queries, keys, matrix

    @property
    def requires_grad(self) -> bool:
        """Whether the line or the matrix requires a gradient."""
        return self.line.requires_grad or (self.matrix is not None and self.matrix.requires_grad)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(1 | B, H, N, M)."""
        return 1 if self.matrix is None else len(self.matrix), len(self.line), self.queries, self.keys

    def tensor(self) -> Tensor:
        """Return the whole matrix, (1 | B, H, N, M)."""
        return self.tile(slice(0, self.queries), slice(0, self.keys))

    def tile(self, queries: Index, keys: Index) -> Tensor:
        """Return these rows and columns, (1 | B, H, rows, columns)."""
        if not torch.compiler.is_compiling() and _is_range(queries) and _is_range(keys):  # `unfold` fixes the length
            columns, last = keys.stop - keys.start, self.queries - queries.start + keys.stop - 1
            near = self.line[:, keys.start - queries.stop + self.queries : last]  # from the largest distance back
            tile = near.unfold(-1, columns, 1).flip(-2).unsqueeze(0)  # each row starts one distance earlier
        else:
            row, key = (positions(part, 0, self.line.device) for part in (queries, keys))
            tile = self.line[:, key - row[:, None] + self.queries - 1].unsqueeze(0)
        return tile if self.matrix is None else tile + cut(self.matrix, queries, keys)

    def to(self, dtype: torch.dtype) -> RelativeBias:
        """Return the same bias in another precision."""
        matrix = None if self.matrix is None else self.matrix.to(dtype)
        return RelativeBias(self.line.to(dtype), self.queries, self.keys, matrix)

    def __add__(self, other: Tensor) -> RelativeBias:
        other = other[(None,) * (4 - other.dim())]
        matrix = other if self.matrix is None else self.matrix + other
        return RelativeBias(self.line, self.queries, self.keys, matrix)

    __radd__ = __add__


Bias = Tensor | RelativeBias
"""A term of the scores that broadcasts to (B, H, N, M)."""


def cut(bias: Bias, queries: Index, keys: Index) -> Tensor:
    """Return the part for these rows and columns; at least one of them is a slice."""
    if isinstance(bias, RelativeBias):
        return bias.tile(queries, keys)
    rows = slice(None) if bias.shape[-2] == 1 else queries
    return bias[..., rows, slice(None) if bias.shape[-1] == 1 else keys]


def of_heads(bias: Bias, heads: slice) -> Bias:
    """Return the bias of these heads; four axes."""
    matrix = bias.matrix if isinstance(bias, RelativeBias) else bias
    if matrix is not None and matrix.shape[1] > 1:
        matrix = matrix[:, heads]
    if not isinstance(bias, RelativeBias):
        assert matrix is not None
        return matrix
    return RelativeBias(bias.line[heads], bias.queries, bias.keys, matrix)


def four_axes(bias: Bias) -> Bias:
    """Return the bias with leading axes of size 1 up to four."""
    return bias if isinstance(bias, RelativeBias) else bias[(None,) * (4 - bias.dim())]


def materialized(bias: Bias) -> Tensor:
    """Return the whole matrix, for kernels that need it."""
    return bias.tensor() if isinstance(bias, RelativeBias) else bias


def _is_range(index: Index) -> TypeGuard[slice]:
    """Whether these are consecutive positions, at least one."""
    return isinstance(index, slice) and index.step is None and index.start < index.stop
