"""A rule over positions, and how rules are joined."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from attnlab.masks.bound import BoundMask, evaluate
from attnlab.masks.clauses import Clause, Clauses, complement, conjunction, disjunction
from attnlab.utils.tracing import holds_values

Band = tuple[int | None, int | None]
"""How far back and how far ahead; None: as far as there is."""


class Mask:
    """A rule: which query position may look at which key position. Combine rules with ``&``, ``|`` and ``~``."""

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """The rule itself, one number at a time: may query ``q`` of head ``h`` of item ``b`` look at key ``k``?

        It is asked for any part of the map, so it may depend on these four alone; a kernel asks for one place of it.

        Args:
            b: items, (B, 1, 1, 1), or any shape that broadcasts with the others; likewise
            h: heads, (H, 1, 1).
            q: positions of queries, (N_q, 1).
            k: positions of keys, (1, N_k).

        Returns:
            Boolean, of the shape to which those that matter broadcast.
        """
        raise NotImplementedError

    @property
    def batch_size(self) -> int:
        """Of how many batch items it speaks one by one; 1 where it is the same for all."""
        return 1

    @property
    def num_heads(self) -> int:
        """Of how many heads it speaks one by one; 1 where it is the same for all."""
        return 1

    @property
    def parts(self) -> tuple[Mask, ...]:
        """The rules that this one is made of; none where it is a rule by itself."""
        return ()

    def check(self, queries: int, keys: int) -> None:
        """Refuse lengths that this rule does not fit.

        Raises:
            ValueError: with what it fits.
        """
        for part in self.parts:
            part.check(queries, keys)

    def check_lengths(self, length: int) -> None:
        """Refuse lengths of sequences above ``length``, that of all keys; only where their values may be read.

        Raises:
            ValueError: with the length given and the length of the keys.
        """
        for part in self.parts:
            part.check_lengths(length)

    @property
    def band(self) -> Band:
        """How far from itself a query can look at most: (back, ahead), None where there is no end."""
        return (None, None)

    is_stride_only = False
    """Whether it allows every key whose distance is a multiple of `stride`."""

    @property
    def stride(self) -> int:
        """A number that divides the distance between a query and any key that it may look at."""
        return 1

    @property
    def is_sparse(self) -> bool:
        """Whether a few queries can look at a few keys alone; `candidate_keys` says which."""
        return None not in self.band

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        """Which of the keys at the positions ``k`` (N_k,) some of these queries may look at: Boolean, like ``k``.

        It may say True too often, never too seldom.
        """
        back, ahead = self.band
        found = torch.ones_like(k, dtype=torch.bool)
        if back is not None:
            found = found & (k >= queries.start - back)
        return found if ahead is None else found & (k < queries.stop + ahead)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        """The rule as a union of key ranges, by which fully masked rows are found without a matrix; None where it is
        not given so. Takes what `allowed` takes.
        """
        return None

    @property
    def head_groups(self) -> list[tuple[slice, Mask]] | None:
        """Where each head has a rule of its own: which heads, that follow each other, have which rule; else None."""
        return None

    @property
    def by_position(self) -> bool:
        """Whether `allowed` may be asked for a part of the map; a given matrix knows its rows, not their positions."""
        return all(part.by_position for part in self.parts)

    def key_ranges(self, keys: int) -> list[slice] | None:
        """Where the rule is one range of keys for each batch item, those ranges; else None."""
        return None

    def token_ranges(self, length: int) -> list[slice] | None:
        """Where the rule keeps one range of tokens of each batch item, to look and to be looked at; else None."""
        return None

    is_segments = False
    """Whether it separates the documents of a packed row."""

    is_padding = False
    """Whether what it leaves out are positions that hold no token, rather than tokens that are not attended to."""

    @property
    def is_relative(self) -> bool:
        """Whether it depends on how far two positions are apart alone."""
        return False

    @property
    def is_contiguous(self) -> bool:
        """Whether every query may look at one range of keys without a gap, or at nothing."""
        return False

    def segments(self, length: int) -> list[slice] | None:
        """Where the rule cuts one row into pieces that know nothing of each other, those pieces; else None."""
        return None

    @property
    def conjuncts(self) -> tuple[Mask, ...]:
        """The rules that all must allow a look: ``a & b & c`` as (a, b, c)."""
        return (self,)

    @property
    def includes_diagonal(self) -> bool:
        """Whether every query is certain to see its own position, so that no row can be empty."""
        return False

    @property
    def is_causal_only(self) -> bool:
        """Whether this is ``causal()`` and nothing else."""
        return False

    def __and__(self, other: Mask | Tensor) -> Mask:
        return _And(self, as_mask(other))

    def __or__(self, other: Mask | Tensor) -> Mask:
        return _Or(self, as_mask(other))

    def __invert__(self) -> Mask:
        return _Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self} is neither true nor false; combine masks with & (both allow), | (either allows) and ~ (not), "
            "not with and, or, not"
        )

    def __rand__(self, other: Tensor) -> Mask:
        return as_mask(other) & self

    def __ror__(self, other: Tensor) -> Mask:
        return as_mask(other) | self

    def materialize(
        self,
        queries: int,
        keys: int | None = None,
        *,
        offset: int | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The rule as a matrix.

        Args:
            queries: N_q.
            keys: N_k; as many as queries where not given.
            offset: the position of the first query among the keys; N_k - N_q where not given.
            device: where the matrix shall be; a mask that holds tensors must be there already (see `to`).

        Returns:
            Boolean, broadcastable to (B, H, N_q, N_k): True where the query may attend to the key. A mask that differs
            per head has all four axes, (1 | B, H, N_q, N_k), so that no head is taken for a batch item.

        Raises:
            ValueError: when a tensor in the mask does not fit these sizes or lies on another device.
        """
        keys = queries if keys is None else keys
        offset = keys - queries if offset is None else offset
        self.check(queries, keys)
        self.check_lengths(keys)
        matrix = evaluate(self, slice(offset, offset + queries), slice(0, keys), device)
        return matrix if self.num_heads == 1 else matrix.expand(-1, -1, queries, keys)

    def bind(
        self,
        queries: int,
        keys: int | None = None,
        *,
        shape: tuple[int, int] | None = None,
        offset: int | None = None,
        first: int = 0,
        device: torch.device | str | None = None,
    ) -> BoundMask:
        """The rule at one length; ``shape`` is the (B, H) that it must fit, ``first`` the first key's position."""
        keys = queries if keys is None else keys
        return BoundMask(self, queries, keys, keys - queries if offset is None else offset, shape, device, first)

    def to(self, device: torch.device | str) -> Self:
        """The same rule with its tensors on ``device``."""
        moved = {
            f.name: value.to(device)
            for f in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, f.name), Tensor | Mask)
        }
        return replace(self, **moved) if moved else self  # type: ignore[type-var]

    def draw(self, queries: int, keys: int | None = None) -> str:
        """The first batch item's first head as text: a row a query, ``■`` where it may look."""
        matrix = self.materialize(queries, keys)
        while matrix.dim() > 2:
            matrix = matrix[0]
        matrix = matrix.expand(queries, queries if keys is None else keys)
        return "\n".join(" ".join("■" if cell else "·" for cell in row) for row in matrix.tolist())


@dataclass(frozen=True, eq=False)
class _Keys(Mask):
    keep: Tensor
    is_padding = True

    def check(self, queries: int, keys: int) -> None:
        if self.keep.shape[1] != keys:
            raise ValueError(
                f"the key mask has shape {tuple(self.keep.shape)}, (batch, keys), but there are {keys} keys"
            )

    @property
    def batch_size(self) -> int:
        return self.keep.shape[0]

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return on_device_of(k, self.keep, "the key mask")[one_for_all(b, self.batch_size), k]

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(keys=self.allowed(b, h, q, k))]

    def key_ranges(self, keys: int) -> list[slice] | None:
        if not self.keep.numel():
            return [slice(0, 0)] * self.batch_size
        starts, counts = self.keep.long().argmax(1, keepdim=True), self.keep.sum(1, keepdim=True)
        place = torch.arange(self.keep.shape[1], device=self.keep.device)
        if not torch.equal(self.keep, (place >= starts) & (place < starts + counts)):
            return None
        return [slice(a, a + n) for a, n in zip(starts.flatten().tolist(), counts.flatten().tolist(), strict=True)]

    def __repr__(self) -> str:
        return f"keys({short(self.keep)})"


@dataclass(frozen=True, eq=False)
class _Matrix(Mask):
    matrix: Tensor

    by_position = False

    @property
    def batch_size(self) -> int:
        return 1 if self.matrix.dim() == 2 else self.matrix.shape[0]

    @property
    def num_heads(self) -> int:
        return self.matrix.shape[1] if self.matrix.dim() == 4 else 1

    def check(self, queries: int, keys: int) -> None:
        rows, columns = self.matrix.shape[-2:]
        if rows not in (1, queries) or columns not in (1, keys):
            raise ValueError(
                f"the mask is {rows} x {columns} (queries x keys), but there are "
                f"{queries} queries and {keys} keys; if its shape is (batch, keys), use from_attention_mask where "
                "True means a real token, and from_key_padding_mask where True means a token to ignore"
            )

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        matrix = on_device_of(k, self.matrix, "the mask")
        return matrix.unsqueeze(1) if matrix.dim() == 3 else matrix

    def __repr__(self) -> str:
        return f"from_tensor({short(self.matrix)})"


@dataclass(frozen=True, eq=False)
class _Pair(Mask):
    left: Mask
    right: Mask

    @property
    def parts(self) -> tuple[Mask, ...]:
        return (self.left, self.right)

    @property
    def batch_size(self) -> int:
        return self.left.batch_size if self.right.batch_size == 1 else self.right.batch_size

    @property
    def num_heads(self) -> int:
        return self.left.num_heads if self.right.num_heads == 1 else self.right.num_heads


@dataclass(frozen=True, eq=False)
class _And(_Pair):
    @property
    def is_relative(self) -> bool:
        return self.left.is_relative and self.right.is_relative

    @property
    def includes_diagonal(self) -> bool:
        return self.left.includes_diagonal and self.right.includes_diagonal

    @property
    def band(self) -> Band:
        back, ahead = zip(self.left.band, self.right.band, strict=True)
        return _nearer(*back), _nearer(*ahead)

    @property
    def stride(self) -> int:
        return math.lcm(self.left.stride, self.right.stride)

    @property
    def is_sparse(self) -> bool:
        return self.left.is_sparse or self.right.is_sparse or None not in self.band

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        return self.left.candidate_keys(queries, k) & self.right.candidate_keys(queries, k)

    @property
    def conjuncts(self) -> tuple[Mask, ...]:
        return (*self.left.conjuncts, *self.right.conjuncts)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allowed(b, h, q, k) & self.right.allowed(b, h, q, k)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return conjunction(self.left.clauses(b, h, q, k), self.right.clauses(b, h, q, k))

    def __repr__(self) -> str:
        return " & ".join(f"({m})" if isinstance(m, _Or) else f"{m}" for m in (self.left, self.right))


@dataclass(frozen=True, eq=False)
class _Or(_Pair):
    @property
    def includes_diagonal(self) -> bool:
        return self.left.includes_diagonal or self.right.includes_diagonal

    @property
    def band(self) -> Band:
        back, ahead = zip(self.left.band, self.right.band, strict=True)
        return _farther(*back), _farther(*ahead)

    @property
    def is_sparse(self) -> bool:
        return self.left.is_sparse and self.right.is_sparse

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        return self.left.candidate_keys(queries, k) | self.right.candidate_keys(queries, k)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allowed(b, h, q, k) | self.right.allowed(b, h, q, k)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return disjunction(self.left.clauses(b, h, q, k), self.right.clauses(b, h, q, k))

    def __repr__(self) -> str:
        return f"{self.left} | {self.right}"


@dataclass(frozen=True, eq=False)
class _Not(Mask):
    mask: Mask

    @property
    def parts(self) -> tuple[Mask, ...]:
        return (self.mask,)

    @property
    def batch_size(self) -> int:
        return self.mask.batch_size

    @property
    def num_heads(self) -> int:
        return self.mask.num_heads

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ~self.mask.allowed(b, h, q, k)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return complement(self.mask.clauses(b, h, q, k))

    def __repr__(self) -> str:
        return f"~({self.mask})" if isinstance(self.mask, _And | _Or) else f"~{self.mask}"


def from_tensor(matrix: Tensor) -> Mask:
    """A Boolean tensor (N_q, N_k), (B, N_q, N_k) or (B, H, N_q, N_k); True means *may look*.

    Raises:
        TypeError: for another dtype; a float tensor is a bias, and whole numbers do not say their polarity.
    """
    require_tensor("from_tensor(matrix)", matrix)
    if matrix.is_floating_point():
        raise TypeError(
            f"a mask is Boolean (True means may look), not {matrix.dtype}; "
            "to add numbers to the scores give them as attn_bias="
        )
    if matrix.dtype != torch.bool:
        raise TypeError(
            f"a mask is Boolean (True means may look), not {matrix.dtype}; use masks.from_attention_mask for 1 = "
            "real and 0 = padding, or compare it yourself"
        )
    if matrix.dim() not in (2, 3, 4):
        raise ValueError(
            f"a mask has the shape (queries, keys), (batch, queries, keys) or (batch, heads, queries, keys), "
            f"not {tuple(matrix.shape)}"
        )
    return _Matrix(matrix)


def as_mask(mask: Mask | Tensor) -> Mask:
    """A `Mask` as it is, a Boolean tensor by `from_tensor`; anything else raises TypeError."""
    if isinstance(mask, Mask):
        return mask
    if isinstance(mask, Tensor):
        return from_tensor(mask)
    raise TypeError(f"a mask is an attnlab.masks.Mask or a Boolean tensor, not {type(mask).__name__}")


def on_device_of(k: Tensor, tensor: Tensor, name: str) -> Tensor:
    """``tensor``, which must lie where the positions ``k`` do; else ValueError."""
    if tensor.device != k.device:
        raise ValueError(f"{name} lies on {tensor.device}, the tokens on {k.device}; move it with mask.to(...)")
    return tensor


def require_tensor(name: str, value: object) -> None:
    """TypeError for what is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} takes a tensor, not {type(value).__name__}; make one with torch.tensor(...)")


def integers(name: str, tensor: Tensor, *shapes: tuple[str, ...]) -> Tensor:
    """Whole numbers with one of these lists of axes, as int64: narrow and unsigned ones would overflow later.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for another dtype or number of axes.
    """
    require_tensor(name, tensor)
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    if not whole or tensor.dim() not in map(len, shapes):
        wanted = " or ".join(f"({', '.join(axes)}{',' if len(axes) == 1 else ''})" for axes in shapes)
        raise ValueError(
            f"{name} takes whole numbers of shape {wanted}, not {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return tensor.long()


def short(value: int | Tensor) -> str:
    """A value, or the shape of a tensor that is large or holds no values to show."""
    if not isinstance(value, Tensor):
        return str(value)
    return str(value.tolist()) if value.numel() <= 8 and holds_values(value) else f"<{'x'.join(map(str, value.shape))}>"


def one_for_all(index: Tensor, count: int) -> Tensor:
    """``index`` into ``count`` items or heads, where a single one stands for all."""
    return torch.zeros_like(index) if count == 1 else index


def _nearer(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _farther(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else max(a, b)
