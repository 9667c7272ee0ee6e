"""Masks that depend on the sequences of a batch: prefix, padding, documents."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnlab.masks.arguments import as_int64, as_lengths, check_int, short
from attnlab.masks.clauses import Clause, Clauses
from attnlab.masks.mask import Mask
from attnlab.utils.tracing import can_inspect_values


@dataclass(frozen=True, eq=False, repr=False)
class PrefixMask(Mask):
    """All queries attend to the first ``length`` keys; one integer, or one per batch item, (B,)."""

    length: int | Tensor
    _name = "prefix"

    def __post_init__(self) -> None:
        if isinstance(self.length, Tensor):
            lengths = as_lengths("prefix(length)", self.length)
            self._set(length=lengths, batch_size=lengths.shape[0], tensors=(lengths,))
        else:
            check_int("prefix(length)", self.length, at_least=0)
            self._set(is_sparse=True)

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        return k < self.length if isinstance(self.length, int) else torch.ones_like(k, dtype=torch.bool)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k < self._lengths(b)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(stop=q.new_zeros(()) + self._lengths(b))]

    def _lengths(self, b: Tensor) -> int | Tensor:
        if isinstance(self.length, int):
            return self.length
        return self.length[b if self.batch_size > 1 else torch.zeros_like(b)]


@dataclass(frozen=True, eq=False, repr=False)
class PaddingMask(Mask):
    """All queries attend to the real tokens; see `padding` for the fields."""

    lengths: Tensor
    side: str = "right"
    max_length: int | None = None
    mask_queries: bool = False
    is_contiguous = is_padding = True

    def __post_init__(self) -> None:
        lengths = as_lengths("padding(lengths)", self.lengths)
        if self.side not in ("right", "left"):
            raise ValueError(f"padding(side=) is 'right' or 'left', not {self.side!r}")
        if self.max_length is None and self.side == "left":
            raise ValueError("left padding needs max_length=, the padded length, to know where the tokens start")
        longest = int(lengths.max()) if can_inspect_values(lengths) and lengths.numel() else 0
        if self.max_length is not None and longest > self.max_length:
            raise ValueError(f"padding(lengths) counts {longest} tokens, more than max_length={self.max_length}")
        self._set(lengths=lengths, batch_size=lengths.shape[0], tensors=(lengths,), max_sequence=longest)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        start, stop = self._bounds(b)
        real = k < stop if start is None else k >= start
        if not self.mask_queries:
            return real
        return real & (q < stop if start is None else q >= start)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        start, stop = self._bounds(b)
        rows = None if not self.mask_queries else q < stop if start is None else q >= start
        return [Clause(start, stop, rows=rows)]

    def _bounds(self, b: Tensor) -> tuple[Any, Any]:
        """The first real position and the end of the real positions; None for the side without padding."""
        lengths = self.lengths[b if self.batch_size > 1 else torch.zeros_like(b)]
        return (None, lengths) if self.side == "right" else (self.max_length - lengths, None)  # type: ignore[operator]

    def key_ranges(self, keys: int) -> list[slice] | None:
        return None if self.mask_queries else self._ranges(keys)

    def token_ranges(self, length: int) -> list[slice] | None:
        return self._ranges(length) if self.mask_queries else None

    def _ranges(self, length: int) -> list[slice]:
        if self.side == "right":
            return [slice(0, min(n, length)) for n in self.lengths.tolist()]
        assert self.max_length is not None
        return [slice(min(max(self.max_length - n, 0), length), length) for n in self.lengths.tolist()]

    def __repr__(self) -> str:
        side = "" if self.side == "right" else ", side='left'"
        return f"padding({short(self.lengths)}{side}{', mask_queries=True' if self.mask_queries else ''})"


@dataclass(frozen=True, eq=False, repr=False)
class KeyMask(Mask):
    """All queries attend to the keys where ``keep``, Boolean (B, N_k), is True."""

    keep: Tensor
    _name = "keys"
    is_padding = has_fixed_size = True

    def __post_init__(self) -> None:
        self._set(batch_size=self.keep.shape[0], tensors=(self.keep,))

    def check(self, queries: int, keys: int) -> None:
        if self.keep.shape[1] != keys:
            raise ValueError(
                f"the key mask has shape {tuple(self.keep.shape)}, (batch, keys), but there are {keys} keys"
            )

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.keep[b if self.batch_size > 1 else torch.zeros_like(b), k]

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(keys=self.allowed(b, h, q, k))]

    def key_ranges(self, keys: int) -> list[slice] | None:
        if not self.keep.numel():
            return [slice(0, 0)] * self.batch_size
        starts, counts = self.keep.long().argmax(1, keepdim=True), self.keep.sum(1, keepdim=True)
        position = torch.arange(self.keep.shape[1], device=self.keep.device)
        if not torch.equal(self.keep, (position >= starts) & (position < starts + counts)):
            return None
        return [slice(a, a + n) for a, n in zip(starts.flatten().tolist(), counts.flatten().tolist(), strict=True)]


@dataclass(frozen=True, eq=False, repr=False)
class SegmentMask(Mask):
    """Each query attends to keys of its own document; ``ids``, (N,) or (B, N), holds the document of each position."""

    ids: Tensor
    _name = "documents"
    includes_diagonal = is_segments = has_fixed_size = True

    def __post_init__(self) -> None:
        ids = as_int64("documents(ids)", self.ids, ("length",), ("batch", "length"))
        self._set(ids=ids, batch_size=1 if ids.dim() == 1 else ids.shape[0], tensors=(ids,))

    def check(self, queries: int, keys: int) -> None:
        if self.ids.shape[-1] < keys:
            raise ValueError(f"documents(ids) has {self.ids.shape[-1]} positions, but there are {keys} keys")

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        ids, length = self.ids, self.ids.shape[-1]
        if not length:
            return torch.zeros_like(q == k)
        inside = (q >= 0) & (q < length)  # other positions belong to no document
        q = q.clamp(0, length - 1)
        if ids.dim() == 1:
            return (ids[q] == ids[k]) & inside
        b = b if self.batch_size > 1 else torch.zeros_like(b)
        return (ids[b, q] == ids[b, k]) & inside

    def segments(self, length: int) -> list[slice] | None:
        if self.batch_size != 1:
            return None
        ids, counts = torch.unique_consecutive(self.ids.flatten()[:length], return_counts=True)
        if ids.unique().numel() != ids.numel():  # a document is interrupted by another
            return None
        return [slice(end - count, end) for end, count in zip(counts.cumsum(0).tolist(), counts.tolist(), strict=True)]


def prefix(length: int | Tensor) -> Mask:
    """All queries attend to the first ``length`` keys; one integer, or one per batch item, (B,).

    A prefix language model is ``causal() | prefix(length)``.
    """
    return PrefixMask(length)


def padding(
    lengths: Tensor,
    *,
    side: str = "right",
    max_length: int | None = None,
    mask_queries: bool = False,
    total: int | None = None,
    queries: bool = False,
) -> Mask:
    """All queries attend to the real tokens only; ``lengths`` (B,) counts them per sequence.

    A padded position still attends to the real tokens unless ``mask_queries`` is set. No real token depends on it.

    Args:
        lengths: integers, (B,).
        side: the side of the padding: "right" (real tokens first) or "left" (real tokens last).
        max_length: the padded length; required for left padding, where it determines the first real position.
        mask_queries: padded positions do not attend to anything either: their rows are zero and are not computed. For
            self-attention.
        total: deprecated, the old name of ``max_length``.
        queries: deprecated, the old name of ``mask_queries``.

    Raises:
        ValueError: for an unknown side; left padding without ``max_length``; a length that is negative or above
            ``max_length``. A layer raises it for a length above the number of its keys. Values are checked on the CPU
            only, outside of traces.
    """
    if total is not None or queries:
        warnings.warn("use padding(max_length=, mask_queries=), not total= and queries=", FutureWarning, stacklevel=2)
    max_length = total if max_length is None else max_length
    return PaddingMask(lengths, side, max_length, mask_queries or queries)


def documents(ids: Tensor) -> Mask:
    """Each query attends to keys of its own document; ``ids`` (N,) or (B, N) holds the document of each position."""
    return SegmentMask(ids)
