"""A mask for one length.

Axes: B batch, H heads, N_q queries, N_k keys.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from attnlab.masks.rule import Rule
from attnlab.utils.tracing import autocast_dtype, can_inspect_device, can_inspect_values

Index = slice | Tensor
"""Rows or columns: a slice, or their indices (n,)."""

QUERY_CHUNK = 64
"""Queries per tile where the keys that they may attend to are not one range."""

CHUNK = 2**22
"""Elements of a matrix that are evaluated at a time."""

SMALL = 2**16
"""Elements of a matrix up to which reading it is faster than evaluating the clauses of its mask."""


class BoundMask:
    """A mask for one length, from which the backends read tiles and properties. The matrix is made at most once.

    Args:
        mask: the mask.
        queries: N_q.
        keys: N_k.
        offset: the position of the first query among the keys.
        shape: the (B, H) that it must broadcast to.
        device: the device of the matrices.
        first: the position of the first key, if a cache has dropped earlier ones.

    Attributes:
        conjuncts: the rules that must all allow a key: (a, b, c) for ``a & b & c``.
        is_causal: whether this is the plain square causal mask, for which kernels need no matrix.
        allows_all: whether no key is masked: a causal mask whose first query is at the end, as in decoding.
        can_fold: whether rows a stride apart attend only to each other, so that `folded_tile` applies.

    Raises:
        ValueError: if the mask does not fit these lengths, or holds a tensor on another device.
    """

    def __init__(
        self,
        mask: Rule,
        queries: int,
        keys: int,
        offset: int,
        shape: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
        first: int = 0,
    ) -> None:
        check_device(mask, device)
        if mask.has_fixed_size:
            mask.check(queries, first + keys)
        if shape is not None and (mask.batch_size not in (1, shape[0]) or mask.num_heads not in (1, shape[1])):
            actual, expected = (mask.batch_size, mask.num_heads, queries, keys), (*shape, queries, keys)
            text = f"the mask has shape {actual}, which does not fit (batch, heads, queries, keys) = {expected}"
            if actual[:2] == (shape[1], 1):
                text += (
                    "; three axes are (batch, queries, keys), so a mask per head needs four, (1, heads, queries, keys)"
                )
            raise ValueError(text)
        self.mask, self.queries, self.keys, self.offset, self.first = mask, queries, keys, offset, first
        self.conjuncts = mask.conjuncts
        self.is_causal = False
        if mask.is_causal_only and queries == keys and offset == 0:
            self.is_causal = True  # not the comparison, which is a SymBool in a trace and no argument of a kernel
        self.allows_all = mask.is_causal_only and offset >= keys - 1
        self.can_fold = mask.stride > 1 and mask.by_position and queries == keys and offset == 0
        self._shape, self._device = shape, device
        self._tensor: Tensor | None = None
        self._masked_rows: Tensor | None = None
        self._has_masked_rows = True
        self._real: list[Tensor] | None = None

    @property
    def is_causal_and_contiguous(self) -> bool:
        """Whether each query attends to one range of keys without gaps, none of them later, or to none."""
        if self.mask.band[1] != 0 or self.offset != self.keys - self.queries:
            return False
        length = self.first + self.keys
        return all(
            rule.is_contiguous or (self._may_read and (rule.key_ranges(length) or rule.segments(length)))
            for rule in self.conjuncts
        )

    @property
    def mean_keys_per_query(self) -> int:
        """The number of keys that a query may attend to on average, or all where that is not known."""
        if not self._lists_keys or not self.queries:
            return self.keys
        return -(-sum(count(rows) * count(keys) for rows, keys in self.tiles(QUERY_CHUNK)) // self.queries)

    def tensor(self) -> Tensor:
        """Return the matrix, Boolean with four axes, broadcastable to (B, H, N_q, N_k)."""
        if self._tensor is None:
            if self.mask.by_position:
                matrix = self.mask.allowed(*self._axes(slice(0, self.queries), slice(0, self.keys)))
            else:  # a materialized mask has a column for every key, also for those that the cache has dropped
                start = self.first + self.offset
                rows, keys = slice(start, start + self.queries), slice(0, self.first + self.keys)
                matrix = evaluate(self.mask, rows, keys, self._device)
                matrix = matrix[..., _broadcast(matrix.shape[-1], slice(self.first, self.first + self.keys))]
            self._tensor = matrix[(None,) * (4 - matrix.dim())]
        return self._tensor

    def tile(self, queries: Index, keys: Index) -> Tensor:
        """Return these rows and columns of `tensor`, without evaluating the rest where the mask allows that.

        At least one of them is a slice.
        """
        if self._tensor is not None or not self.mask.by_position:
            matrix = self.tensor()
            return matrix[..., _broadcast(matrix.shape[-2], queries), _broadcast(matrix.shape[-1], keys)]
        part = self.mask.allowed(*self._axes(queries, keys))
        return part[(None,) * (4 - part.dim())]

    def without(self, rule: Rule) -> BoundMask | None:
        """Return the mask without one of its conjuncts; None if there is no other."""
        rest = [other for other in self.conjuncts if other is not rule]
        return self._rebound(rest, self._shape) if rest else None

    def head_groups(self) -> list[tuple[slice, BoundMask]] | None:
        """Return consecutive heads that share a mask, with that mask; None if the mask is the same for all heads.

        Also None if two conjuncts differ per head.
        """
        for rule in self.conjuncts:
            if rule.head_groups:
                others = [other for other in self.conjuncts if other is not rule]
                if all(other.num_heads == 1 for other in others):
                    groups = []
                    for heads, part in rule.head_groups:
                        shape = None if self._shape is None else (self._shape[0], count(heads))
                        groups.append((heads, self._rebound([part, *others], shape)))
                    return groups
        return None

    def zero_fully_masked_rows(self, out: Tensor) -> Tensor:
        """Return ``out`` (B, N_q, D) with zeros in the fully masked rows."""
        if self.mask.includes_diagonal and 0 <= self.offset <= self.keys - self.queries:
            return out
        if self._masked_rows is None:
            self._masked_rows = self.fully_masked().unsqueeze(-1)
            if can_inspect_values(out):
                self._has_masked_rows = bool(self._masked_rows.any())
        if not self._has_masked_rows:
            return out
        return out.masked_fill(self._masked_rows, 0.0)

    def zero_padding(self, x: Tensor) -> Tensor:
        """Return ``x`` (B, n, D), the last n of the keys, with zeros for padded values that could overflow.

        A masked key has an attention weight of zero, but zero times NaN or infinity is NaN. Other values stay: the
        output at a padded position is computed from them.
        """
        if self._real is None:
            self._real = [real.unsqueeze(-1) for real in self.real_keys(x.shape[1])]
        if not self._real:
            return x
        # The product of an input, a parameter and a query stays finite.
        limit = torch.finfo(autocast_dtype(x.device) or x.dtype).max ** (1 / 3)
        if x.numel() and can_inspect_values(x):  # one pass over x is faster than the four below
            low, high = torch.aminmax(x.detach())
            if -limit < low and high < limit:
                return x
        for real in self._real:
            x = torch.where(real | (x.abs() < limit), x, 0.0)
        return x

    def real_keys(self, number: int) -> list[Tensor]:
        """Return which of the last keys hold a token under each padding mask, Boolean (B | 1, number)."""
        last, real = self.first + self.keys, []
        position = torch.arange(last - number, last, device=self._device).unsqueeze(0)
        for rule in self.conjuncts:
            if rule.is_padding:
                item = torch.arange(rule.batch_size, device=self._device).unsqueeze(1)
                real.append(rule.allowed(item, torch.zeros_like(item), position, position))
        return real

    def key_range(self, queries: slice) -> slice:
        """Return the range from the first to the last key that these rows may attend to.

        If the rows are a stride apart, so are the keys.
        """
        back, ahead = self.mask.band
        step = queries.step or 1
        first = 0 if back is None else queries.start + self.offset - back
        last = self.keys if ahead is None else queries.stop + self.offset + ahead
        start = min(max(first, 0), self.keys)
        start += (queries.start + self.offset - start) % step
        return slice(start, max(start, min(last, self.keys)), queries.step)

    def tiles(self, size: int, *, one_residue: bool = False) -> list[tuple[slice, Index]]:
        """Return all rows in groups of ``size``, each with the keys that these rows may attend to.

        With a stride, a group holds rows of one residue. ``one_residue`` returns the groups of the first residue only;
        the keys then hold for the other residues too, shifted like their rows (see `folded_tile`).
        """
        stride = self.mask.stride
        tiles = []
        for first in range(1 if one_residue else min(stride, self.queries)):
            for part in slices(-(-(self.queries - first) // stride), size):
                last = first + stride * (part.stop - 1)
                rows = slice(first + stride * part.start, last + 1, stride if stride > 1 else None)
                tiles.append((rows, self.key_range(rows) if one_residue else self._candidate_keys(rows)))
        return tiles

    def folded_tile(self, rows: slice, keys: slice) -> Tensor:
        """Return `tile` for all residues of the stride: these rows and columns, and those 1 to stride - 1 later.

        The length is rounded up to a multiple of the stride, and positions after the last key are masked.

        Returns:
            Boolean, broadcastable to (B, stride, H, rows, keys).
        """
        stride, last = self.mask.stride, self.keys - 1
        if self.mask.is_relative and self.keys % stride == 0:  # the same for every residue
            return self.tile(rows, keys).unsqueeze(1)
        residue = torch.arange(stride, device=self._device).view(-1, 1, 1, 1)
        q = positions(rows, 0, self._device).unsqueeze(1) + residue
        k = positions(keys, 0, self._device) + residue
        b, h, *within = _with_axes(self.mask, *[self.first + p.clamp(max=last) for p in (q, k)])
        allowed = torch.ones(count(rows), count(keys), dtype=torch.bool, device=self._device)[None, None, None]
        for rule in self.conjuncts:
            if not rule.is_stride_only:  # which all of these satisfy
                allowed = allowed & rule.allowed(b.unsqueeze(1), h, *within)
        return allowed if self.keys % stride == 0 else allowed & (k <= last)

    def fully_masked(self) -> Tensor:
        """Return which rows attend to no key in any head, Boolean (B | 1, N_q).

        Found from `Rule.clauses` without a matrix where the mask has that form, else from one part at a time.
        """
        compiling = torch.compiler.is_compiling()
        if self._tensor is not None and not compiling and self._tensor.numel() <= SMALL:
            return ~self._tensor.any(-1).any(1).expand(-1, self.queries)
        b, h, q, k = self._axes(slice(0, self.queries), slice(0, self.keys))
        clauses = self.mask.clauses(b, h, q, k)
        if clauses is not None:
            any_key = torch.zeros(1, 1, self.queries, 1, dtype=torch.bool, device=self._device)
            for clause in clauses:
                any_key = any_key | clause.any_key(q, self.keys, self.first)
            return ~any_key.squeeze(-1).any(1)
        if self._tensor is not None or not self.mask.by_position or compiling:
            return ~self.tensor().any(-1).any(1).expand(-1, self.queries)
        size = min(256, max(1, CHUNK // max(1, self.mask.batch_size * self.mask.num_heads * self.keys)))
        tiles = self.tiles(size) or [(slice(0, 0), slice(0, 0))]
        parts = [~self.tile(*part).any(-1).any(1).expand(-1, count(part[0])) for part in tiles]
        return in_order(parts, [rows for rows, _ in tiles], -1)

    @property
    def _may_read(self) -> bool:
        return can_inspect_device(torch.device(self._device or "cpu"))

    @property
    def _lists_keys(self) -> bool:
        """Whether `Rule.candidate_keys` finds few keys for a few queries, and its result can be read."""
        return self.mask.is_sparse and self._may_read

    def _candidate_keys(self, rows: slice) -> Index:
        """`key_range` without the keys in between that none of the rows may attend to."""
        key_range = self.key_range(rows)
        if None not in self.mask.band or not self._lists_keys:
            return key_range
        keys, start = positions(key_range, 0, self._device), self.first + self.offset
        keys = keys[self.mask.candidate_keys(range(start + rows.start, start + rows.stop), keys + self.first)]
        if len(keys) == count(key_range):
            return key_range
        first, step = (int(keys[0]), key_range.step or 1) if len(keys) else (key_range.start, 1)
        equidistant = slice(first, first + step * (len(keys) - 1) + 1, key_range.step)  # a view, no copy
        return equidistant if len(keys) and int(keys[-1]) == equidistant.stop - 1 else keys

    def _rebound(self, rules: Sequence[Rule], shape: tuple[int, int] | None) -> BoundMask:
        rule = functools.reduce(operator.and_, rules)
        return BoundMask(rule, self.queries, self.keys, self.offset, shape, self._device, self.first)

    def _axes(self, queries: Index, keys: Index) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The arguments of `Rule.allowed` for these rows and columns."""
        q = positions(queries, self.first + self.offset, self._device)
        return _with_axes(self.mask, q.unsqueeze(1), positions(keys, self.first, self._device).unsqueeze(0))


def evaluate(mask: Rule, queries: slice, keys: slice, device: torch.device | str | None) -> Tensor:
    """Return the mask for these positions, broadcastable to (B, H, N_q, N_k)."""
    q, k = positions(queries, 0, device).unsqueeze(1), positions(keys, 0, device).unsqueeze(0)
    matrix = mask.allowed(*_with_axes(mask, q, k))
    return matrix.unsqueeze(0) if matrix.dim() == 3 else matrix  # (H, N_q, N_k)


def check_device(mask: Rule, device: torch.device | str | None) -> None:
    """Raise ValueError for tensors on another device: some backends would copy them in every call, others fail."""
    if not mask.tensors or torch.compiler.is_compiling():
        return
    device = torch.get_default_device() if device is None else torch.device(device)
    for tensor in mask.tensors:
        actual = tensor.device if device.index is not None else torch.device(tensor.device.type)
        if actual != device:
            raise ValueError(f"the mask is on {tensor.device}, the tokens are on {device}; move it with mask.to(...)")


def positions(index: Index, first: int, device: torch.device | str | None) -> Tensor:
    """Return an index as a tensor of positions that start at ``first``."""
    if isinstance(index, Tensor):
        return index + first
    return torch.arange(first + index.start, first + index.stop, index.step or 1, device=device)


def count(index: Index) -> int:
    """Return the number of positions in an index."""
    if isinstance(index, Tensor):
        return len(index)
    size: int = -(-(index.stop - index.start) // (index.step or 1))  # not len(range(...)): a length may be symbolic
    return max(size, 0)


def in_order(parts: list[Tensor], rows: list[slice], axis: int) -> Tensor:
    """Concatenate ``parts`` along ``axis`` so that each row is at its index in ``rows``."""
    joined = torch.cat(parts, axis)
    if all(part.step is None for part in rows):  # consecutive
        return joined
    return joined.index_select(axis, torch.cat([positions(part, 0, joined.device) for part in rows]).argsort())


def slices(length: int, size: int) -> list[slice]:
    """Split ``length`` positions into slices of ``size``."""
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _with_axes(mask: Rule, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prepend batch items and heads, (B, 1, 1, 1) and (H, 1, 1), to these positions."""
    b = torch.arange(mask.batch_size, device=q.device).view(-1, 1, 1, 1)
    return b, torch.arange(mask.num_heads, device=q.device).view(-1, 1, 1), q, k


def _broadcast(size: int, part: Index) -> Index:
    return slice(None) if size == 1 else part  # a single row or column stands for all
