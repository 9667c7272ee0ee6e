"""Masks and the operators that combine them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from attnlab.masks.arguments import require_tensor, short
from attnlab.masks.bound import BoundMask, check_device, evaluate
from attnlab.masks.clauses import Clauses, complement, conjunction, disjunction
from attnlab.masks.rule import Rule


class Mask(Rule):
    """A rule for which query positions may attend to which key positions.

    Masks combine with ``&`` (both allow), ``|`` (either allows) and ``~`` (not); Boolean tensors are accepted as
    operands.
    """

    _name: str = ""
    """The function that makes the mask, as `repr` shows it with the fields."""

    def __and__(self, other: Mask | Tensor) -> Mask:
        return AndMask(self, as_mask(other))

    def __or__(self, other: Mask | Tensor) -> Mask:
        return OrMask(self, as_mask(other))

    def __invert__(self) -> Mask:
        return NotMask(self)

    def __rand__(self, other: Tensor) -> Mask:
        return as_mask(other) & self

    def __ror__(self, other: Tensor) -> Mask:
        return as_mask(other) | self

    def __repr__(self) -> str:
        if not self._name:
            return super().__repr__()
        return f"{self._name}({', '.join(short(getattr(self, field.name)) for field in fields(self) if field.init)})"  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self} is neither true nor false; combine masks with & (both allow), | (either allows) and ~ (not), "
            "not with and, or, not"
        )

    def materialize(
        self,
        queries: int,
        keys: int | None = None,
        *,
        offset: int | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return the mask as a Boolean matrix, True where the query may attend to the key.

        Args:
            queries: N_q.
            keys: N_k; equal to ``queries`` by default.
            offset: the position of the first query among the keys; N_k - N_q by default.
            device: the device of the result; tensors in the mask must be on it already (see `to`).

        Returns:
            Boolean, broadcastable to (B, H, N_q, N_k). A mask that differs per head has all four axes, so that heads
            are not mistaken for batch items.

        Raises:
            ValueError: if a tensor in the mask does not fit these sizes or is on another device.
        """
        keys = queries if keys is None else keys
        offset = keys - queries if offset is None else offset
        check_device(self, device)
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
        """Return the mask for one length; the arguments are those of `BoundMask`."""
        keys = queries if keys is None else keys
        return BoundMask(self, queries, keys, keys - queries if offset is None else offset, shape, device, first)

    def to(self, device: torch.device | str) -> Self:
        """Return the same mask with its tensors on ``device``."""
        moved = {f.name: _moved(getattr(self, f.name), device) for f in fields(self) if f.init}  # type: ignore[arg-type]
        return replace(self, **moved) if moved else self  # type: ignore[type-var]

    def draw(self, queries: int, keys: int | None = None) -> str:
        """Return the mask of the first batch item and head as text, one row per query, ``■`` where it is True."""
        matrix = self.materialize(queries, keys)
        while matrix.dim() > 2:
            matrix = matrix[0]
        matrix = matrix.expand(queries, queries if keys is None else keys)
        return "\n".join(" ".join("■" if cell else "·" for cell in row) for row in matrix.tolist())

    def _set(self, **properties: Any) -> None:
        """Set properties that follow from the fields, in ``__post_init__``.

        Not as cached properties: torch.compile cannot trace these on Python 3.11, and recompiles when a mask changes.
        """
        for name, value in properties.items():
            object.__setattr__(self, name, value)

    def _combine(self, *parts: Mask, **properties: Any) -> None:
        """Set these properties, and those that follow from the masks that this one combines."""
        batch_size = num_heads = 1
        for part in parts:
            batch_size = batch_size if part.batch_size == 1 else part.batch_size
            num_heads = num_heads if part.num_heads == 1 else part.num_heads
        self._set(
            parts=parts,
            batch_size=batch_size,
            num_heads=num_heads,
            tensors=tuple(tensor for part in parts for tensor in part.tensors),
            has_fixed_size=any(part.has_fixed_size for part in parts),
            max_sequence=max(part.max_sequence for part in parts),
            by_position=all(part.by_position for part in parts),
        )
        self._set(**properties)


@dataclass(frozen=True, eq=False, repr=False)
class _Pair(Mask):
    left: Mask
    right: Mask


@dataclass(frozen=True, eq=False, repr=False)
class AndMask(_Pair):
    """The keys that both masks allow."""

    def __post_init__(self) -> None:
        left, right = self.left, self.right
        (a, c), (b, d) = left.band, right.band
        back, ahead = (
            b if a is None else a if b is None else min(a, b),
            d if c is None else c if d is None else min(c, d),
        )
        self._combine(
            left,
            right,
            band=(back, ahead),
            stride=math.lcm(left.stride, right.stride),
            is_sparse=left.is_sparse or right.is_sparse or (back is not None and ahead is not None),
            is_relative=left.is_relative and right.is_relative,
            includes_diagonal=left.includes_diagonal and right.includes_diagonal,
        )

    @property
    def conjuncts(self) -> tuple[Rule, ...]:
        return (*self.left.conjuncts, *self.right.conjuncts)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allowed(b, h, q, k) & self.right.allowed(b, h, q, k)

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        return self.left.candidate_keys(queries, k) & self.right.candidate_keys(queries, k)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return conjunction(self.left.clauses(b, h, q, k), self.right.clauses(b, h, q, k))

    def __repr__(self) -> str:
        return " & ".join(f"({m})" if isinstance(m, OrMask) else f"{m}" for m in (self.left, self.right))


@dataclass(frozen=True, eq=False, repr=False)
class OrMask(_Pair):
    """The keys that either mask allows."""

    def __post_init__(self) -> None:
        left, right = self.left, self.right
        (a, c), (b, d) = left.band, right.band
        self._combine(
            left,
            right,
            band=(None if a is None or b is None else max(a, b), None if c is None or d is None else max(c, d)),
            is_sparse=left.is_sparse and right.is_sparse,
            is_relative=left.is_relative and right.is_relative,
            includes_diagonal=left.includes_diagonal or right.includes_diagonal,
        )

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.left.allowed(b, h, q, k) | self.right.allowed(b, h, q, k)

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        return self.left.candidate_keys(queries, k) | self.right.candidate_keys(queries, k)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return disjunction(self.left.clauses(b, h, q, k), self.right.clauses(b, h, q, k))

    def __repr__(self) -> str:
        return f"{self.left} | {self.right}"


@dataclass(frozen=True, eq=False, repr=False)
class NotMask(Mask):
    """The keys that ``mask`` does not allow."""

    mask: Mask

    def __post_init__(self) -> None:
        self._combine(self.mask, is_relative=self.mask.is_relative)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ~self.mask.allowed(b, h, q, k)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return complement(self.mask.clauses(b, h, q, k))

    def __repr__(self) -> str:
        return f"~({self.mask})" if isinstance(self.mask, _Pair) else f"~{self.mask}"


@dataclass(frozen=True, eq=False, repr=False)
class TensorMask(Mask):
    """A Boolean tensor (N_q, N_k), (B, N_q, N_k) or (B, H, N_q, N_k); True means *attend*.

    Raises:
        TypeError: for another dtype; a float tensor is a bias, and integers do not define their polarity.
        ValueError: for another number of axes.
    """

    matrix: Tensor

    _name = "from_tensor"
    by_position = False
    has_fixed_size = True

    def __post_init__(self) -> None:
        matrix = self.matrix
        require_tensor("from_tensor(matrix)", matrix)
        if matrix.dtype != torch.bool:
            raise TypeError(
                f"a mask is Boolean (True means attend), not {matrix.dtype}; "
                + (
                    "to add values to the scores, give them as attn_bias="
                    if matrix.is_floating_point()
                    else "use masks.from_attention_mask for 1 = real and 0 = padding, or compare it yourself"
                )
            )
        if matrix.dim() not in (2, 3, 4):
            raise ValueError(
                f"a mask has the shape (queries, keys), (batch, queries, keys) or (batch, heads, queries, keys), "
                f"not {tuple(matrix.shape)}"
            )
        self._set(
            batch_size=1 if matrix.dim() == 2 else matrix.shape[0],
            num_heads=matrix.shape[1] if matrix.dim() == 4 else 1,
            tensors=(matrix,),
        )

    def check(self, queries: int, keys: int) -> None:
        rows, columns = self.matrix.shape[-2:]
        if rows not in (1, queries) or columns not in (1, keys):
            raise ValueError(
                f"the mask is {rows} x {columns} (queries x keys), but there are "
                f"{queries} queries and {keys} keys; if its shape is (batch, keys), use from_attention_mask where "
                "True means a real token, and from_key_padding_mask where True means a token to ignore"
            )

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.matrix.unsqueeze(1) if self.matrix.dim() == 3 else self.matrix


def from_tensor(matrix: Tensor) -> Mask:
    """Return a Boolean tensor as a mask (see `TensorMask`); True means *attend*."""
    return TensorMask(matrix)


def as_mask(mask: Mask | Tensor) -> Mask:
    """Return a `Mask` unchanged and a Boolean tensor as a `TensorMask`; raise TypeError for anything else."""
    if isinstance(mask, Mask):
        return mask
    if isinstance(mask, Tensor):
        return TensorMask(mask)
    raise TypeError(f"a mask is an attnlab.masks.Mask or a Boolean tensor, not {type(mask).__name__}")


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    return value.to(device) if isinstance(value, Tensor | Mask) else value
