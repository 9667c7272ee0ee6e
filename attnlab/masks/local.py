"""Masks that depend on the distance between query and key: causal, sliding window, strided, global tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.masks.arguments import check_int
from attnlab.masks.clauses import Clause, Clauses
from attnlab.masks.mask import Mask


@dataclass(frozen=True, eq=False, repr=False)
class CausalMask(Mask):
    """Each query attends to its own position and to earlier ones."""

    _name, band = "causal", (None, 0)
    includes_diagonal = is_causal_only = is_relative = is_contiguous = True

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(stop=q + 1)]


@dataclass(frozen=True, eq=False, repr=False)
class SlidingWindowMask(Mask):
    """Each query attends to keys less than ``size`` positions away."""

    size: int
    _name = "sliding_window"
    includes_diagonal = is_relative = is_contiguous = is_sparse = True

    def __post_init__(self) -> None:
        check_int("sliding_window(size)", self.size)
        self._set(band=(self.size - 1, self.size - 1))

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k).abs() < self.size

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(start=q - self.size + 1, stop=q + self.size)]


@dataclass(frozen=True, eq=False, repr=False)
class StridedMask(Mask):
    """Each query attends to keys whose distance is a multiple of ``stride``."""

    stride: int
    _name = "strided"
    includes_diagonal = is_relative = is_sparse = is_stride_only = True

    def __post_init__(self) -> None:
        check_int("strided(stride)", self.stride)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k) % self.stride == 0

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(stride=self.stride)]


@dataclass(frozen=True, eq=False, repr=False)
class GlobalTokensMask(Mask):
    """The first ``count`` positions attend to all keys, and all queries attend to them."""

    count: int
    _name = "global_tokens"
    is_sparse = True

    def __post_init__(self) -> None:
        check_int("global_tokens(count)", self.count)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q < self.count) | (k < self.count)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(rows=q < self.count), Clause(stop=torch.full_like(q, self.count))]

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        return k < self.count if queries.start >= self.count else torch.ones_like(k, dtype=torch.bool)


_CAUSAL = CausalMask()


def causal() -> Mask:
    """Each query attends to its own position and to earlier ones, never to later ones."""
    return _CAUSAL


def sliding_window(size: int) -> Mask:
    """Each query attends to keys less than ``size`` positions away, on both sides.

    With ``causal()``: its own position and the ``size - 1`` before it.
    """
    return SlidingWindowMask(size)


def strided(stride: int) -> Mask:
    """Each query attends to its own position and to every ``stride``-th position before and after it."""
    return StridedMask(stride)


def dilated(size: int, dilation: int) -> Mask:
    """A dilated sliding window: less than ``size`` steps of ``dilation`` positions away, on both sides."""
    check_int("dilated(size)", size)
    check_int("dilated(dilation)", dilation)
    return sliding_window((size - 1) * dilation + 1) & strided(dilation)


def global_tokens(count: int) -> Mask:
    """The first ``count`` positions attend to all keys, and all queries attend to them.

    Combine it with another mask by ``|``, as in ``sliding_window(64) | global_tokens(2)``.

    Source: Beltagy et al. 2020, "Longformer", section 3.1.
    """
    return GlobalTokensMask(count)
