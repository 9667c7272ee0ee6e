"""Masks as unions of key ranges, from which fully masked rows are found without a matrix.

Axes: B batch, H heads, N_q queries, N_k keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_CLAUSES = 64
"""Number of clauses above which evaluating a chunk of the matrix is cheaper."""


@dataclass(frozen=True)
class Clause:
    """One range of keys per query; None means no restriction.

    Args:
        start: the first position, broadcastable to (B, H, N_q, 1).
        stop: the position after the last, broadcastable to (B, H, N_q, 1).
        keys: which keys of the range are allowed, Boolean, broadcastable to (B, H, 1, N_k).
        rows: which queries attend to any key, Boolean, broadcastable to (B, H, N_q, 1).
        stride: a divisor of the distance between query and key.
    """

    start: Tensor | None = None
    stop: Tensor | None = None
    keys: Tensor | None = None
    rows: Tensor | None = None
    stride: int = 1

    def __and__(self, other: Clause) -> Clause:
        a, b = self, other
        return Clause(
            a.start if b.start is None else b.start if a.start is None else torch.maximum(a.start, b.start),
            a.stop if b.stop is None else b.stop if a.stop is None else torch.minimum(a.stop, b.stop),
            a.keys if b.keys is None else b.keys if a.keys is None else a.keys & b.keys,
            a.rows if b.rows is None else b.rows if a.rows is None else a.rows & b.rows,
            a.stride if b.stride == 1 else b.stride if a.stride == 1 else math.lcm(a.stride, b.stride),
        )

    def any_key(self, q: Tensor, keys: int, first: int) -> Tensor:
        """Which queries attend to at least one key, broadcastable to (B, H, N_q, 1).

        Args:
            q: query positions, (N_q, 1).
            keys: N_k.
            first: the position of the first key.
        """
        start = torch.zeros_like(q) if self.start is None else (self.start - first).clamp(0, keys)
        stop = torch.full_like(q, keys) if self.stop is None else (self.stop - first).clamp(0, keys)
        end = stop
        if self.stride > 1:  # advance to the next position of the query's residue
            start, end = (bound + (q - first - bound) % self.stride for bound in (start, stop))
        if self.keys is None:
            allowed = start < stop
        else:
            allowed = _count_before(self.keys, end, self.stride) > _count_before(self.keys, start, self.stride)
        return allowed if self.rows is None else allowed & self.rows


Clauses = list[Clause] | None
"""A union of clauses; None for a rule that has no such form."""


def conjunction(left: Clauses, right: Clauses) -> Clauses:
    """The keys that both allow."""
    if left is None or right is None or len(left) * len(right) > MAX_CLAUSES:
        return None
    return [a & b for a in left for b in right]


def disjunction(left: Clauses, right: Clauses) -> Clauses:
    """The keys that either allows."""
    return None if left is None or right is None else [*left, *right]


def complement(clauses: Clauses) -> Clauses:
    """The keys that none allows."""
    outside: Clauses = [Clause()]
    for clause in clauses or []:
        outside = conjunction(outside, _outside(clause))
    return None if clauses is None else outside


def _outside(clause: Clause) -> Clauses:
    if clause.stride > 1:
        return None
    parts = [
        None if clause.start is None else Clause(stop=clause.start),
        None if clause.stop is None else Clause(start=clause.stop),
        None if clause.keys is None else Clause(keys=~clause.keys),
        None if clause.rows is None else Clause(rows=~clause.rows),
    ]
    return [part for part in parts if part is not None]


def _count_before(keys: Tensor, bounds: Tensor, stride: int) -> Tensor:
    """The number of ``keys`` (..., 1, N_k) before each of ``bounds`` (..., N_q, 1), a multiple of the stride away."""
    keys, bounds = (t[(None,) * (4 - t.dim())] for t in (keys, bounds))
    rows = (keys.shape[-1] + stride - 1) // stride + 1
    ones = F.pad(keys.squeeze(-2).long(), (0, rows * stride - keys.shape[-1])).unflatten(-1, (rows, stride))
    before = (ones.cumsum(-2) - ones).flatten(-2)
    shape = torch.broadcast_shapes(before.shape[:2], bounds.shape[:2])
    return before.expand(*shape, -1).gather(-1, bounds.squeeze(-1).expand(*shape, -1)).unsqueeze(-1)
