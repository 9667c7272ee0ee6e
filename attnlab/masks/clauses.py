"""Rules as unions of key ranges, in which the fully masked rows are counted without a matrix.

Axes: B batch, H heads, N_q queries, N_k keys.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MANY = 64
"""Clauses above which a chunk of the matrix costs less than they do."""


@dataclass(frozen=True)
class Clause:
    """One range of keys for each query; what is None does not restrict.

    Args:
        start: the first position, broadcastable to (B, H, N_q, 1).
        stop: the position behind the last, broadcastable to (B, H, N_q, 1).
        keys: which keys of the range, Boolean, broadcastable to (B, H, 1, N_k).
        rows: which queries attend to any key at all, Boolean, broadcastable to (B, H, N_q, 1).
        step: the distance between query and key is a multiple of it.
    """

    start: Tensor | None = None
    stop: Tensor | None = None
    keys: Tensor | None = None
    rows: Tensor | None = None
    stride: int = 1

    def __and__(self, other: Clause) -> Clause:
        return Clause(
            _both(torch.maximum, self.start, other.start),
            _both(torch.minimum, self.stop, other.stop),
            _both(operator.and_, self.keys, other.keys),
            _both(operator.and_, self.rows, other.rows),
            self.stride
            if other.stride == 1
            else other.stride
            if self.stride == 1
            else math.lcm(self.stride, other.stride),
        )

    def any_key(self, q: Tensor, keys: int, first: int) -> Tensor:
        """Which queries attend to at least one key, broadcastable to (B, H, N_q, 1).

        Args:
            q: positions of queries, (N_q, 1).
            keys: N_k.
            first: the position of the first key.
        """
        start, stop = (
            torch.full_like(q, empty) if bound is None else (bound - first).clamp(0, keys)
            for bound, empty in ((self.start, 0), (self.stop, keys))
        )
        end = stop
        if self.stride > 1:  # the next position in the query's own step
            start, end = (bound + (q - first - bound) % self.stride for bound in (start, stop))
        if self.keys is None:
            found = start < stop
        else:
            found = _counted(self.keys, end, self.stride) > _counted(self.keys, start, self.stride)
        return found if self.rows is None else found & self.rows


Clauses = list[Clause] | None
"""A union of clauses; None for a rule that is not given by any."""


def conjunction(left: Clauses, right: Clauses) -> Clauses:
    """What both allow."""
    if left is None or right is None or len(left) * len(right) > MANY:
        return None
    return [a & b for a in left for b in right]


def disjunction(left: Clauses, right: Clauses) -> Clauses:
    """What either allows."""
    return None if left is None or right is None else [*left, *right]


def complement(clauses: Clauses) -> Clauses:
    """What none allows."""
    outside: Clauses = [Clause()]
    for clause in [] if clauses is None else clauses:
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


def _both(join: Callable[[Tensor, Tensor], Tensor], left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return join(left, right)


def _counted(keys: Tensor, places: Tensor, step: int) -> Tensor:
    """How many of ``keys`` (..., 1, N_k) lie before each of ``places`` (..., N_q, 1), in steps from it."""
    keys, places = (t[(None,) * (4 - t.dim())] for t in (keys, places))
    rows = (keys.shape[-1] + step - 1) // step + 1
    ones = F.pad(keys.squeeze(-2).long(), (0, rows * step - keys.shape[-1])).unflatten(-1, (rows, step))
    before = (ones.cumsum(-2) - ones).flatten(-2)
    shape = torch.broadcast_shapes(before.shape[:2], places.shape[:2])
    return before.expand(*shape, -1).gather(-1, places.squeeze(-1).expand(*shape, -1)).unsqueeze(-1)
