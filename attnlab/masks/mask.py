"""A rule over positions, how rules are joined, and a rule at one length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class Mask:
    """A rule: which query position may look at which key position. Combine rules with ``&``, ``|`` and ``~``."""

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        """The rule itself, for positions ``q`` (N_q, 1) and ``k`` (1, N_k).

        Returns:
            Boolean, broadcastable to (B, H, N_q, N_k).
        """
        raise NotImplementedError

    @property
    def sees_itself(self) -> bool:
        """Whether every query is certain to see its own position, so that no row can be empty."""
        return False

    @property
    def is_triangle(self) -> bool:
        """Whether this is ``causal()`` and nothing else."""
        return False

    def __and__(self, other: Mask | Tensor) -> Mask:
        return _And(self, as_mask(other))

    def __or__(self, other: Mask | Tensor) -> Mask:
        return _Or(self, as_mask(other))

    def __invert__(self) -> Mask:
        return _Not(self)

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
            Boolean, broadcastable to (B, H, N_q, N_k): True where the query may look at the key.

        Raises:
            ValueError: when a tensor in the mask does not fit these sizes or lies on another device.
        """
        keys = queries if keys is None else keys
        offset = keys - queries if offset is None else offset
        q = torch.arange(offset, offset + queries, device=device).unsqueeze(1)
        k = torch.arange(keys, device=device).unsqueeze(0)
        return self.allows(q, k)

    def bind(
        self,
        queries: int,
        keys: int | None = None,
        *,
        shape: tuple[int, int] | None = None,
        offset: int | None = None,
        device: torch.device | str | None = None,
    ) -> BoundMask:
        """The rule at one length; ``shape`` is the (B, H) that it must fit."""
        keys = queries if keys is None else keys
        return BoundMask(self, queries, keys, keys - queries if offset is None else offset, shape, device)

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


class BoundMask:
    """A mask at one length, as a mechanism and the engines see it: it becomes a matrix at most once."""

    def __init__(
        self,
        mask: Mask,
        queries: int,
        keys: int,
        offset: int,
        shape: tuple[int, int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.mask, self.queries, self.keys, self.offset = mask, queries, keys, offset
        self._shape, self._device = shape, device
        self._tensor: Tensor | None = None

    @property
    def is_causal(self) -> bool:
        """Whether this is the plain square triangle, for which kernels need no matrix."""
        return self.mask.is_triangle and self.queries == self.keys and self.offset == 0

    def tensor(self) -> Tensor:
        """Boolean, four axes, broadcastable to (B, H, N_q, N_k)."""
        if self._tensor is None:
            matrix = self.mask.materialize(self.queries, self.keys, offset=self.offset, device=self._device)
            matrix = matrix[(None,) * (4 - matrix.dim())]
            wanted = (*(self._shape or matrix.shape[:2]), self.queries, self.keys)
            if any(have not in (1, want) for have, want in zip(matrix.shape, wanted, strict=True)):
                raise ValueError(
                    f"the mask has shape {tuple(matrix.shape)}, which does not fit "
                    f"(batch, heads, queries, keys) = {wanted}"
                )
            self._tensor = matrix
        return self._tensor

    def blank(self, out: Tensor) -> Tensor:
        """``out`` (B, N_q, D) with zeros in the rows that may look at nothing."""
        if self.mask.sees_itself and 0 <= self.offset <= self.keys - self.queries:
            return out
        empty = ~self.tensor().any(-1).any(1)  # (B | 1, N_q)
        return out.masked_fill(empty.unsqueeze(-1), 0.0)


@dataclass(frozen=True, eq=False)
class _Keys(Mask):
    keep: Tensor

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        keep = on_device_of(k, self.keep, "the key mask")
        if keep.shape[1] != k.shape[-1]:
            raise ValueError(
                f"the key mask has shape {tuple(keep.shape)}, (batch, keys), but there are {k.shape[-1]} keys"
            )
        return keep[:, None, None, :]

    def __repr__(self) -> str:
        return f"keys({short(self.keep)})"


@dataclass(frozen=True, eq=False)
class _Matrix(Mask):
    matrix: Tensor

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        matrix = on_device_of(k, self.matrix, "the mask")
        if any(have not in (1, want) for have, want in zip(matrix.shape[-2:], (q.shape[0], k.shape[1]), strict=True)):
            raise ValueError(
                f"the mask is {matrix.shape[-2]} x {matrix.shape[-1]} (queries x keys), but there are "
                f"{q.shape[0]} queries and {k.shape[1]} keys; for one row a batch item use from_key_padding_mask"
            )
        return matrix.unsqueeze(1) if matrix.dim() == 3 else matrix

    def __repr__(self) -> str:
        return f"from_tensor({short(self.matrix)})"


@dataclass(frozen=True, eq=False)
class _And(Mask):
    left: Mask
    right: Mask

    @property
    def sees_itself(self) -> bool:
        return self.left.sees_itself and self.right.sees_itself

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return _join(self.left, self.right, q, k, torch.logical_and)

    def __repr__(self) -> str:
        return " & ".join(f"({m})" if isinstance(m, _Or) else f"{m}" for m in (self.left, self.right))


@dataclass(frozen=True, eq=False)
class _Or(Mask):
    left: Mask
    right: Mask

    @property
    def sees_itself(self) -> bool:
        return self.left.sees_itself or self.right.sees_itself

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return _join(self.left, self.right, q, k, torch.logical_or)

    def __repr__(self) -> str:
        return f"{self.left} | {self.right}"


@dataclass(frozen=True, eq=False)
class _Not(Mask):
    mask: Mask

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return ~self.mask.allows(q, k)

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
            "to add numbers to the scores give them as bias="
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


def short(value: int | Tensor) -> str:
    """A value, or the shape of a large one."""
    if not isinstance(value, Tensor):
        return str(value)
    return str(value.tolist()) if value.numel() <= 8 else f"<{'x'.join(map(str, value.shape))}>"


def _join(left: Mask, right: Mask, q: Tensor, k: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return operation(left.allows(q, k), right.allows(q, k))
