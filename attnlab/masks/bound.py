"""A rule at one length.

Axes: B batch, H heads, N_q queries, N_k keys.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnlab.utils.tracing import autocast_dtype, may_read

if TYPE_CHECKING:
    from attnlab.masks.mask import Mask

Index = slice | Tensor
"""Rows or columns: from one to another, or one by one."""

QUERY_CHUNK = 64
"""Queries for which it is asked together what they can reach, where that is no range."""


CHUNK = 2**22
"""Entries of a matrix that are evaluated at a time."""


class BoundMask:
    """A mask at one length, as a mechanism and the engines see it: it becomes a matrix at most once.

    Args:
        mask: the rule.
        queries: N_q.
        keys: N_k.
        offset: the position of the first query among the keys.
        shape: the (B, H) that it must fit.
        device: where matrices are made.
        first: the position of the first key, where a cache has let go of earlier ones.

    Raises:
        ValueError: when the rule does not fit these lengths, or holds a tensor on another device.
    """

    def __init__(
        self,
        mask: Mask,
        queries: int,
        keys: int,
        offset: int,
        shape: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        first: int = 0,
    ) -> None:
        if device is not None and not torch.compiler.is_compiling():
            _check_place(mask, torch.device(device))
        mask.check(queries, first + keys)
        if shape is not None and (mask.batch_size not in (1, shape[0]) or mask.num_heads not in (1, shape[1])):
            raise ValueError(_misfit((mask.batch_size, mask.num_heads, queries, keys), (*shape, queries, keys)))
        self.mask, self.queries, self.keys, self.offset, self.first = mask, queries, keys, offset, first
        self._shape, self._device = shape, device
        self._tensor: Tensor | None = None

    @property
    def is_causal(self) -> bool:
        """Whether this is the plain square triangle, for which kernels need no matrix."""
        return self.mask.is_causal_only and self.queries == self.keys and self.offset == 0

    @property
    def allows_all(self) -> bool:
        """Whether nothing is forbidden: a triangle whose first query is at the end already, as in decoding."""
        return self.mask.is_causal_only and self.offset >= self.keys - 1

    @property
    def is_causal_and_contiguous(self) -> bool:
        """Whether each query is certain to see one unbroken range of keys, none of them ahead, or nothing."""
        if self.mask.band[1] != 0 or self.offset != self.keys - self.queries:
            return False
        length = self.first + self.keys
        return all(
            rule.is_contiguous
            or (may_read(torch.device(self._device or "cpu")) and (rule.key_ranges(length) or rule.segments(length)))
            for rule in self.mask.conjuncts
        )

    @property
    def max_keys_per_query(self) -> int:
        """How many keys one query can reach at most; where a few queries can reach more than others, on average."""
        back, ahead = self.mask.band
        if back is not None and ahead is not None:
            step = self.mask.stride
            return min(self.keys, back // step + 1 + ahead // step)
        if not self._can_enumerate_keys or not self.queries:
            return self.keys
        return -(-sum(count(rows) * count(keys) for rows, keys in self.tiles(QUERY_CHUNK)) // self.queries)

    def tensor(self) -> Tensor:
        """Boolean, four axes, broadcastable to (B, H, N_q, N_k)."""
        if self._tensor is None:
            if self.mask.by_position:
                matrix = self._evaluated(slice(0, self.queries), slice(0, self.keys))
            else:  # a given matrix has a column for every key that ever was
                at = slice(self.first + self.offset, self.first + self.offset + self.queries)
                matrix = evaluate(self.mask, at, slice(0, self.first + self.keys), self._device)
                matrix = matrix[..., _of(matrix.shape[-1], slice(self.first, self.first + self.keys))]
            self._tensor = self._fitted(matrix, self.queries, self.keys)
        return self._tensor

    def tile(self, queries: slice, keys: Index) -> Tensor:
        """The part of `tensor` for these rows and columns; the rest is not made where the rule allows that."""
        if self._tensor is not None or not self.mask.by_position:
            whole = self.tensor()
            return whole[..., _of(whole.shape[-2], queries), _of(whole.shape[-1], keys)]
        return self._fitted(self._evaluated(queries, keys), count(queries), count(keys))

    def rows(self, index: Tensor) -> Tensor:
        """Chosen rows of `tensor`, (B | 1, H | 1, rows, N_k); the rest is not made where the rule allows that."""
        if self._tensor is not None or not self.mask.by_position:
            whole = self.tensor()
            return whole if whole.shape[-2] == 1 else whole[..., index, :]
        keys = torch.arange(self.first, self.first + self.keys, device=self._device)
        matrix = _asked(self.mask, (self.first + self.offset + index).unsqueeze(1), keys.unsqueeze(0))
        return self._fitted(matrix, len(index), self.keys)

    def without(self, rule: Mask) -> BoundMask | None:
        """The mask that the other factors make; None where there is no other."""
        left = [factor for factor in self.mask.conjuncts if factor is not rule]
        if not left:
            return None
        rest = functools.reduce(operator.and_, left)
        return BoundMask(rest, self.queries, self.keys, self.offset, self._shape, self._device, self.first)

    def zero_fully_masked_rows(self, out: Tensor) -> Tensor:
        """``out`` (B, N_q, D) with zeros in the fully masked rows."""
        if self.mask.includes_diagonal and 0 <= self.offset <= self.keys - self.queries:
            return out
        return out.masked_fill(self.fully_masked().unsqueeze(-1), 0.0)

    def zero_padding(self, tokens: Tensor) -> Tensor:
        """``tokens`` (B, n, D), the last n of the keys, with 0 for each number in the padding that could overflow.

        A masked key has a weight of zero, but zero times NaN or infinity is NaN. Ordinary numbers stay: the row of a
        padded position is computed from what it holds.
        """
        last = self.first + self.keys
        place = torch.arange(last - tokens.shape[1], last, device=tokens.device).unsqueeze(0)
        dtype = autocast_dtype(tokens.device) or tokens.dtype
        limit = torch.finfo(dtype).max ** (1 / 3)  # the product of a token, a weight and a query stays finite
        for rule in self.mask.conjuncts:
            if rule.is_padding:
                item = torch.arange(rule.batch_size, device=tokens.device).unsqueeze(1)
                real = rule.allowed(item, torch.zeros_like(item), place, place)  # (B | 1, n)
                tokens = tokens.masked_fill(~(real.unsqueeze(-1) | (tokens.abs() < limit)), 0.0)
        return tokens

    def key_range(self, queries: slice) -> slice:
        """The keys from the first to the last that these rows can reach; those in a step of `Mask.stride` alone, where
        the rows stand in one.
        """
        back, ahead = self.mask.band
        step = queries.step or 1
        first = 0 if back is None else queries.start + self.offset - back
        last = self.keys if ahead is None else queries.stop + self.offset + ahead
        start = min(max(first, 0), self.keys)
        start += (queries.start + self.offset - start) % step
        return slice(start, max(start, min(last, self.keys)), queries.step)

    @property
    def can_fold(self) -> bool:
        """Whether rows a step apart attend to each other alone, and are given by position."""
        return self.mask.stride > 1 and self.mask.by_position and self.queries == self.keys and self.offset == 0

    def folded_tile(self, rows: slice, keys: slice) -> Tensor:
        """`tile` for all residues of the step: these rows and columns, and those 1, 2, ... step - 1 positions later.

        A position behind the last key is masked: the length is taken as the next multiple of the step.

        Returns:
            Boolean, broadcastable to (B, step, H, rows, keys).
        """
        step, last = self.mask.stride, self.keys - 1
        if self.mask.is_relative and self.keys % step == 0:  # the same for every residue
            return self.tile(rows, keys).unsqueeze(1)
        later = torch.arange(step, device=self._device).view(-1, 1, 1, 1)
        q = positions(rows, 0, self._device).unsqueeze(1) + later
        k = positions(keys, 0, self._device) + later
        at = [self.first + place.clamp(max=last) for place in (q, k)]
        b, h, *_ = _with_items(self.mask, *at)
        permitted = torch.ones(count(rows), count(keys), dtype=torch.bool, device=self._device)[None, None, None]
        for rule in self.mask.conjuncts:
            if not rule.is_stride_only:  # that holds for all of them
                permitted = permitted & rule.allowed(b.unsqueeze(1), h, *at)
        return permitted if self.keys % step == 0 else permitted & (k <= last)

    def tiles(self, size: int, *, one_residue: bool = False) -> list[tuple[slice, Index]]:
        """All rows, ``size`` at a time, each time with the keys that these can reach.

        Rows of one residue are taken together; ``one_residue`` gives those of the first row alone,
        with keys that hold for the others too, each as many positions later as its row (`folded_tile`).
        """
        step = self.mask.stride
        parts = []
        for first in range(1 if one_residue else min(step, self.queries)):
            for part in slices(-(-(self.queries - first) // step), size):
                last = first + step * (part.stop - 1)
                rows = slice(first + step * part.start, last + 1, step if step > 1 else None)
                parts.append((rows, self.key_range(rows) if one_residue else self._reached(rows)))
        return parts

    def _reached(self, rows: slice) -> Index:
        """`key_range`, without the keys in between that the rule leaves out."""
        seen = self.key_range(rows)
        if None not in self.mask.band or not self._can_enumerate_keys:
            return seen
        places = positions(seen, 0, self._device)
        at = self.first + self.offset
        places = places[self.mask.candidate_keys(range(at + rows.start, at + rows.stop), places + self.first)]
        if len(places) == count(seen):
            return seen
        start, step = (int(places[0]), seen.step or 1) if len(places) else (seen.start, 1)
        side_by_side = slice(start, start + step * (len(places) - 1) + 1, seen.step)  # which can be read as they lie
        return side_by_side if len(places) and int(places[-1]) == side_by_side.stop - 1 else places

    @property
    def _can_enumerate_keys(self) -> bool:
        """Whether what a few queries can look at is found by looking a few keys at a time."""
        if None not in self.mask.band:
            return True
        return self.mask.is_sparse and may_read(torch.device(self._device or "cpu"))

    def fully_masked(self) -> Tensor:
        """Which rows attend to no key in any head, Boolean (B | 1, N_q). No matrix is made to find them, but of a rule
        that `Mask.clauses` does not give: a part at a time.
        """
        clauses = self.mask.clauses(*self._places(slice(0, self.queries), slice(0, self.keys)))
        if clauses is not None:
            q = positions(slice(0, self.queries), self.first + self.offset, self._device).unsqueeze(1)
            found = torch.zeros(1, 1, self.queries, 1, dtype=torch.bool, device=self._device)
            for clause in clauses:
                found = found | clause.any_key(q, self.keys, self.first)
            return ~found.squeeze(-1).any(1)
        if self._tensor is not None or not self.mask.by_position or torch.compiler.is_compiling():
            return ~self.tensor().any(-1).any(1).expand(-1, self.queries)
        size = min(256, max(1, CHUNK // max(1, self.mask.batch_size * self.mask.num_heads * self.keys)))
        tiles = self.tiles(size) or [(slice(0, 0), slice(0, 0))]
        return in_order(
            [~self.tile(*part).any(-1).any(1).expand(-1, count(part[0])) for part in tiles],
            [rows for rows, _ in tiles],
            -1,
        )

    def head_groups(self) -> list[tuple[slice, BoundMask]] | None:
        """Where one factor has a rule for each head, and the others speak of all: which heads, and what binds them."""
        for rule in self.mask.conjuncts:
            others = [factor for factor in self.mask.conjuncts if factor is not rule]
            if rule.head_groups and all(factor.num_heads == 1 for factor in others):
                return [(heads, self._of_heads(heads, [own, *others])) for heads, own in rule.head_groups]
        return None

    def _of_heads(self, heads: slice, rules: list[Mask]) -> BoundMask:
        shape = None if self._shape is None else (self._shape[0], count(heads))
        rule = functools.reduce(operator.and_, rules)
        return BoundMask(rule, self.queries, self.keys, self.offset, shape, self._device, self.first)

    def _evaluated(self, queries: slice, keys: Index) -> Tensor:
        return self.mask.allowed(*self._places(queries, keys))

    def _places(self, queries: slice, keys: Index) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `Mask.allowed` takes for these rows and columns."""
        q = positions(queries, self.first + self.offset, self._device)
        return _with_items(self.mask, q.unsqueeze(1), positions(keys, self.first, self._device).unsqueeze(0))

    def _fitted(self, matrix: Tensor, queries: int, keys: int) -> Tensor:
        matrix = matrix[(None,) * (4 - matrix.dim())]
        wanted = (*(self._shape or matrix.shape[:2]), queries, keys)
        if any(have not in (1, want) for have, want in zip(matrix.shape, wanted, strict=True)):
            raise ValueError(_misfit(tuple(matrix.shape), wanted))
        return matrix


def evaluate(mask: Mask, queries: slice, keys: slice, device: torch.device | str | None) -> Tensor:
    """The rule for these positions, broadcastable to (B, H, N_q, N_k)."""
    matrix = _asked(mask, positions(queries, 0, device).unsqueeze(1), positions(keys, 0, device).unsqueeze(0))
    return matrix.unsqueeze(0) if matrix.dim() == 3 else matrix  # per head, for all items


def _asked(mask: Mask, q: Tensor, k: Tensor) -> Tensor:
    """The rule for positions (N_q, 1) and (1, N_k), broadcastable to (B, H, N_q, N_k)."""
    return mask.allowed(*_with_items(mask, q, k))


def _with_items(mask: Mask, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Items and heads, (B, 1, 1, 1) and (H, 1, 1), before these positions."""
    b = torch.arange(mask.batch_size, device=q.device).view(-1, 1, 1, 1)
    return b, torch.arange(mask.num_heads, device=q.device).view(-1, 1, 1), q, k


def positions(places: Index, first: int, device: torch.device | str | None) -> Tensor:
    """Index counted from ``first`` as a tensor."""
    if isinstance(places, Tensor):
        return places + first
    return torch.arange(first + places.start, first + places.stop, places.step or 1, device=device)


def count(places: Index) -> int:
    """How many they are."""
    if isinstance(places, Tensor):
        return len(places)
    found: int = -(-(places.stop - places.start) // (places.step or 1))  # by hand: a length may be a symbol
    return max(found, 0)


def in_order(parts: list[Tensor], rows: list[slice], axis: int) -> Tensor:
    """The parts joined, each row where it belongs."""
    whole = torch.cat(parts, axis)
    if all(part.step is None for part in rows):  # one after the other
        return whole
    return whole.index_select(axis, torch.cat([positions(part, 0, whole.device) for part in rows]).argsort())


def slices(length: int, size: int) -> list[slice]:
    """``length`` places, ``size`` at a time."""
    return [slice(at, min(at + size, length)) for at in range(0, length, size)]


def _check_place(mask: Any, device: torch.device) -> None:
    """Refuse tensors of a mask that lie elsewhere: some ways would look into them there and be slow, others fail."""
    for field in fields(mask) if is_dataclass(mask) else ():
        value = getattr(mask, field.name)
        if isinstance(value, Tensor):
            there = value.device if device.index is not None else torch.device(value.device.type)
            if there != device:
                raise ValueError(f"the mask lies on {value.device}, the tokens on {device}; move it with mask.to(...)")
        else:  # a mask of this one's, several of them, or a number
            for part in value if isinstance(value, tuple) else (value,):
                _check_place(part, device)


def _misfit(have: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    text = f"the mask has shape {have}, which does not fit (batch, heads, queries, keys) = {wanted}"
    if have[:2] == (wanted[1], 1):
        text += "; three axes are (batch, queries, keys), so a mask per head needs four, (1, heads, queries, keys)"
    return text


def _of(size: int, part: Index) -> Index:
    return slice(None) if size == 1 else part  # one row stands for all
