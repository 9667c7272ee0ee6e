"""Who may look at whom: an algebra of masks.

``causal() & window(128) & padding(lengths)``: read aloud, it is the specification. A mask is a rule over the
positions of a query and a key, not a matrix; it becomes one only when a length is known. One polarity
everywhere: True means *may look*. Other conventions are converted by name (`from_key_padding_mask`,
`from_attn_mask`, `from_attention_mask`, `from_cu_seqlens`), never by guessing.

Queries are aligned with keys at the end: with more keys than queries (a cache, a shorter query) the last query
sees all keys. ``offset`` overrides this: it is the position of the first query among the keys.

Axes: B batch, H heads, N_q queries, N_k keys.
"""

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
        return isinstance(self.mask, _Causal) and self.queries == self.keys and self.offset == 0

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


# The rules


@dataclass(frozen=True, eq=False)
class _Causal(Mask):
    sees_itself = True

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return k <= q

    def __repr__(self) -> str:
        return "causal()"


@dataclass(frozen=True, eq=False)
class _Window(Mask):
    size: int
    sees_itself = True

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        return (q - k).abs() < self.size

    def __repr__(self) -> str:
        return f"window({self.size})"


@dataclass(frozen=True, eq=False)
class _Prefix(Mask):
    length: int | Tensor

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        if isinstance(self.length, Tensor):
            return k < _on(k, self.length, "prefix(length)")[:, None, None, None]
        return k < self.length

    def __repr__(self) -> str:
        return f"prefix({_short(self.length)})"


@dataclass(frozen=True, eq=False)
class _Padding(Mask):
    """Keys from ``start`` up to, not including, ``stop`` are real; None leaves that end open."""

    lengths: Tensor
    start: Tensor | None
    stop: Tensor | None

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        if self.start is not None:
            return k >= _on(k, self.start, "padding(lengths)")[:, None, None, None]
        assert self.stop is not None
        return k < _on(k, self.stop, "padding(lengths)")[:, None, None, None]

    def __repr__(self) -> str:
        side = "" if self.start is None else ", side='left'"
        return f"padding({_short(self.lengths)}{side})"


@dataclass(frozen=True, eq=False)
class _Documents(Mask):
    ids: Tensor
    sees_itself = True

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        ids = _on(k, self.ids, "documents(ids)")
        length = ids.shape[-1]
        if length < k.shape[-1]:
            raise ValueError(f"documents(ids) names {length} positions, but there are {k.shape[-1]} keys")
        inside = (q >= 0) & (q < length)  # a position that the ids do not name is in no document
        queries, keys = ids[..., q.squeeze(1).clamp(0, length - 1)], ids[..., k.squeeze(0)]
        same = (queries.unsqueeze(-1) == keys.unsqueeze(-2)) & inside
        return same if same.dim() == 2 else same.unsqueeze(1)

    def __repr__(self) -> str:
        return f"documents({_short(self.ids)})"


@dataclass(frozen=True, eq=False)
class _Blocks(Mask):
    size: int
    pattern: Tensor | None

    @property
    def sees_itself(self) -> bool:
        return self.pattern is None

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = q // self.size, k // self.size
        if self.pattern is None:
            return q == k
        pattern = _on(k, self.pattern, "blocks(size, pattern)")
        rows, columns = pattern.shape[-2:]
        need = k.shape[-1] and -(-k.shape[-1] // self.size)
        if columns * self.size < k.shape[-1] or rows < need:
            raise ValueError(
                f"the pattern of blocks({self.size}, ...) is {rows} x {columns}, too small for {k.shape[-1]} keys, "
                f"which are {need} blocks"
            )
        return pattern[..., q.clamp(0, rows - 1), k] & (q >= 0) & (q < rows)

    def __repr__(self) -> str:
        return f"blocks({self.size}{'' if self.pattern is None else f', {_short(self.pattern)}'})"


@dataclass(frozen=True, eq=False)
class _Keys(Mask):
    keep: Tensor

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        keep = _on(k, self.keep, "the key mask")
        if keep.shape[1] != k.shape[-1]:
            raise ValueError(
                f"the key mask has shape {tuple(keep.shape)}, (batch, keys), but there are {k.shape[-1]} keys"
            )
        return keep[:, None, None, :]

    def __repr__(self) -> str:
        return f"keys({_short(self.keep)})"


@dataclass(frozen=True, eq=False)
class _Matrix(Mask):
    matrix: Tensor

    def allows(self, q: Tensor, k: Tensor) -> Tensor:
        matrix = _on(k, self.matrix, "the mask")
        if any(have not in (1, want) for have, want in zip(matrix.shape[-2:], (q.shape[0], k.shape[1]), strict=True)):
            raise ValueError(
                f"the mask is {matrix.shape[-2]} x {matrix.shape[-1]} (queries x keys), but there are "
                f"{q.shape[0]} queries and {k.shape[1]} keys; for one row a batch item use from_key_padding_mask"
            )
        return matrix.unsqueeze(1) if matrix.dim() == 3 else matrix

    def __repr__(self) -> str:
        return f"from_tensor({_short(self.matrix)})"


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


def causal() -> Mask:
    """A token looks at itself and back, never ahead."""
    return _Causal()


def window(size: int) -> Mask:
    """Less than ``size`` positions away, on either side; with ``causal()``: itself and the ``size - 1`` before."""
    return _Window(_positive("window(size)", size))


def prefix(length: int | Tensor) -> Mask:
    """Everyone may look at the first keys: ``length`` is a number, or one a batch item, (B,).

    A prefix language model is ``causal() | prefix(length)``.
    """
    if isinstance(length, Tensor):
        return _Prefix(_integers("prefix(length)", length, 1))
    if isinstance(length, bool) or not isinstance(length, int) or length < 0:
        raise ValueError(f"prefix(length) takes a whole number of at least 0, not {length!r}")
    return _Prefix(length)


def padding(lengths: Tensor, *, side: str = "right", total: int | None = None) -> Mask:
    """Only real keys: ``lengths`` (B,) counts them, the padding stands on ``side``.

    Args:
        lengths: (B,), whole numbers.
        side: "right" (real tokens first) or "left" (real tokens last).
        total: the padded length; needed on the left, where it says at which position the real tokens start.

    Raises:
        ValueError: an unknown side; left padding without ``total``; a length above ``total``.
    """
    lengths = _integers("padding(lengths)", lengths, 1)
    if side not in ("right", "left"):
        raise ValueError(f"padding(side=) is 'right' or 'left', not {side!r}")
    if total is not None and lengths.numel() and int(lengths.max()) > total:
        raise ValueError(f"padding(lengths) counts {int(lengths.max())} tokens, more than total={total}")
    if side == "right":
        return _Padding(lengths, None, lengths)
    if total is None:
        raise ValueError("left padding needs total=, the padded length, to know where the real tokens start")
    return _Padding(lengths, total - lengths, None)


def documents(ids: Tensor) -> Mask:
    """Only within one's own document: ``ids`` (N,) or (B, N) names the document of every position."""
    _tensor("documents(ids)", ids)
    if ids.dim() not in (1, 2) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"documents(ids) takes whole numbers of shape (length,) or (batch, length), "
            f"not {ids.dtype} of shape {tuple(ids.shape)}"
        )
    return _Documents(ids)


def blocks(size: int, pattern: Tensor | None = None) -> Mask:
    """Blocks of ``size`` positions: each looks into its own, or where ``pattern`` says.

    Args:
        size: positions a block.
        pattern: Boolean (query blocks, key blocks), or with leading batch and head axes; True where every query
            of the one block may look at every key of the other.
    """
    if pattern is not None:
        _tensor("blocks(pattern=)", pattern)
    if pattern is not None and (pattern.dtype != torch.bool or pattern.dim() not in (2, 4)):
        raise ValueError(
            f"blocks(pattern=) takes a Boolean tensor (query blocks, key blocks) or (batch, heads, ...), "
            f"not {pattern.dtype} of shape {tuple(pattern.shape)}"
        )
    return _Blocks(_positive("blocks(size)", size), pattern)


def from_tensor(matrix: Tensor) -> Mask:
    """A Boolean tensor (N_q, N_k), (B, N_q, N_k) or (B, H, N_q, N_k); True means *may look*.

    Raises:
        TypeError: for another dtype; a float tensor is a bias, and whole numbers do not say their polarity.
    """
    _tensor("from_tensor(matrix)", matrix)
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


# The conventions of others


def from_key_padding_mask(mask: Tensor) -> Mask:
    """From `torch.nn.MultiheadAttention`'s key_padding_mask: Boolean (B, N_k), True means *ignore this key*."""
    _tensor("from_key_padding_mask(mask)", mask)
    if mask.dtype != torch.bool or mask.dim() != 2:
        raise TypeError(
            f"key_padding_mask is Boolean of shape (batch, keys), not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return _Keys(~mask)


def to_key_padding_mask(mask: Mask, queries: int, keys: int | None = None) -> Tensor:
    """To key_padding_mask, (B, N_k), True means *ignore*.

    Raises:
        ValueError: when the rule is not the same for every query and head.
    """
    return ~_keys_alone(mask, queries, keys, "key_padding_mask")


def from_attn_mask(mask: Tensor, num_heads: int | None = None) -> Mask:
    """From `torch.nn.MultiheadAttention`'s attn_mask, where True (or -inf) means *may not look*.

    Args:
        mask: (N_q, N_k) or (B·H, N_q, N_k); Boolean, or float of 0 and -inf only.
        num_heads: H, needed for three axes.

    Raises:
        TypeError: for other numbers: those are a bias, to be given as ``bias=``.
    """
    _tensor("from_attn_mask(mask)", mask)
    if mask.is_floating_point():
        if not bool(((mask == 0) | (mask == -torch.inf)).all()):
            raise TypeError("this attn_mask holds numbers other than 0 and -inf: give it as bias=")
        mask = mask == -torch.inf
    if mask.dtype != torch.bool or mask.dim() not in (2, 3):
        raise TypeError(
            f"attn_mask is Boolean or float of shape (queries, keys) or (batch * heads, queries, keys), "
            f"not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    if mask.dim() == 3:
        if num_heads is None or mask.shape[0] % num_heads:
            raise ValueError(f"an attn_mask of {mask.shape[0]} maps (batch * heads) needs num_heads=, a divisor of it")
        mask = mask.unflatten(0, (-1, num_heads))
    return _Matrix(~mask)


def to_attn_mask(mask: Mask, queries: int, keys: int | None = None, *, num_heads: int = 1) -> Tensor:
    """To attn_mask, True means *may not look*: (N_q, N_k), or (B·H, N_q, N_k) where items or heads differ.

    Raises:
        ValueError: for a rule that differs between heads, but not between ``num_heads`` of them.
    """
    matrix = ~mask.materialize(queries, keys)
    matrix = matrix.expand(*matrix.shape[:-2], queries, queries if keys is None else keys)
    if matrix.dim() == 2:
        return matrix
    if matrix.shape[1] not in (1, num_heads):
        raise ValueError(f"{mask} has {matrix.shape[1]} heads; give num_heads={matrix.shape[1]}, not {num_heads}")
    return matrix.expand(-1, num_heads, -1, -1).flatten(0, 1)


def from_attention_mask(mask: Tensor) -> Mask:
    """From Hugging Face's attention_mask: (B, N_k), 1 is a real token and 0 is padding."""
    _tensor("from_attention_mask(mask)", mask)
    if mask.dim() != 2 or not bool(((mask == 0) | (mask == 1)).all()):
        raise TypeError(
            f"attention_mask has the shape (batch, keys) and holds 1 (real) or 0 (padding), "
            f"not {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return _Keys(mask == 1)


def to_attention_mask(mask: Mask, queries: int, keys: int | None = None) -> Tensor:
    """To Hugging Face's attention_mask: int64 (B, N_k), 1 is real; raises like `to_key_padding_mask`."""
    return _keys_alone(mask, queries, keys, "attention_mask").long()


def from_cu_seqlens(cu_seqlens: Tensor) -> Mask:
    """From the boundaries of packed sequences, (S + 1,): 0, the running sums of the lengths, the total."""
    _tensor("from_cu_seqlens(cu_seqlens)", cu_seqlens)
    if cu_seqlens.is_floating_point() or cu_seqlens.dtype == torch.bool:
        raise ValueError(f"cu_seqlens holds whole numbers, not {cu_seqlens.dtype}")
    starts = cu_seqlens.long()
    if starts.dim() != 1 or starts.numel() < 2 or int(starts[0]) != 0 or bool((starts.diff() < 0).any()):
        raise ValueError("cu_seqlens starts at 0 and never falls: [0, n1, n1 + n2, ...]")
    return _Documents(torch.repeat_interleave(torch.arange(starts.numel() - 1, device=starts.device), starts.diff()))


def to_cu_seqlens(mask: Mask) -> Tensor:
    """The boundaries, int32 (S + 1,), of a ``documents`` mask over one packed row.

    Raises:
        ValueError: for another mask, or documents that are not contiguous.
    """
    if not isinstance(mask, _Documents) or (mask.ids.dim() == 2 and mask.ids.shape[0] != 1):
        raise ValueError(f"only documents(ids) over one row has cu_seqlens, not {mask}")
    ids, counts = torch.unique_consecutive(mask.ids.flatten(), return_counts=True)
    if ids.unique().numel() != ids.numel():
        raise ValueError("a document that is interrupted by another has no cu_seqlens")
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


# Small parts


def _join(left: Mask, right: Mask, q: Tensor, k: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return operation(left.allows(q, k), right.allows(q, k))


def _keys_alone(mask: Mask, queries: int, keys: int | None, name: str) -> Tensor:
    keys = queries if keys is None else keys
    matrix = mask.materialize(queries, keys)
    matrix = matrix[(None,) * (4 - matrix.dim())].expand(-1, -1, queries, keys)
    first = matrix[:, 0, 0]
    if not bool((matrix == first[:, None, None]).all()):
        raise ValueError(f"{mask} is not the same for every query, so it cannot be given as {name}; use to_attn_mask")
    return first


def _on(k: Tensor, tensor: Tensor, name: str) -> Tensor:
    if tensor.device != k.device:
        raise ValueError(f"{name} lies on {tensor.device}, the tokens on {k.device}; move it with mask.to(...)")
    return tensor


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} takes a whole number of at least 1, not {value!r}")
    return value


def _tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} takes a tensor, not {type(value).__name__}; make one with torch.tensor(...)")


def _integers(name: str, tensor: Tensor, dim: int) -> Tensor:
    _tensor(name, tensor)
    if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.dim() != dim:
        raise ValueError(
            f"{name} takes whole numbers of shape (batch,), not {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return tensor


def _short(value: int | Tensor) -> str:
    if not isinstance(value, Tensor):
        return str(value)
    return str(value.tolist()) if value.numel() <= 8 else f"<{'x'.join(map(str, value.shape))}>"
