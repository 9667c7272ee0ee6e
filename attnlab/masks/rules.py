"""The rules by name: causal, window, dilated, prefix, padding, documents, blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attnlab.masks.mask import Mask, Reach, on_device_of, one_for_all, require_tensor, short


@dataclass(frozen=True, eq=False)
class _Causal(Mask):
    sees_itself = True
    is_triangle = True
    is_relative = True
    is_unbroken = True
    reach = (None, 0)

    def at(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q

    def __repr__(self) -> str:
        return "causal()"


@dataclass(frozen=True, eq=False)
class _Window(Mask):
    size: int
    sees_itself = True
    is_relative = True
    is_unbroken = True

    @property
    def reach(self) -> Reach:
        return (self.size - 1, self.size - 1)

    def at(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k).abs() < self.size

    def __repr__(self) -> str:
        return f"window({self.size})"


@dataclass(frozen=True, eq=False)
class _Dilated(Mask):
    size: int
    step: int
    sees_itself = True
    is_relative = True

    @property
    def reach(self) -> Reach:
        return ((self.size - 1) * self.step, (self.size - 1) * self.step)

    def at(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ((q - k).abs() <= (self.size - 1) * self.step) & ((q - k) % self.step == 0)

    def __repr__(self) -> str:
        return f"dilated({self.size}, {self.step})"


@dataclass(frozen=True, eq=False)
class _Prefix(Mask):
    length: int | Tensor

    @property
    def items(self) -> int:
        return self.length.shape[0] if isinstance(self.length, Tensor) else 1

    def at(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if isinstance(self.length, Tensor):
            return k < on_device_of(k, self.length, "prefix(length)")[one_for_all(b, self.items)]
        return k < self.length

    def __repr__(self) -> str:
        return f"prefix({short(self.length)})"


@dataclass(frozen=True, eq=False)
class _Padding(Mask):
    """Positions from ``start`` up to, not including, ``stop`` are real; None leaves that end open."""

    lengths: Tensor
    start: Tensor | None
    stop: Tensor | None
    queries: bool

    @property
    def items(self) -> int:
        return self.lengths.shape[0]

    def at(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self._real(b, k) & self._real(b, q) if self.queries else self._real(b, k)

    def spans(self, keys: int) -> list[slice] | None:
        return None if self.queries else self._ranges(keys)

    def tokens(self, length: int) -> list[slice] | None:
        return self._ranges(length) if self.queries else None

    def _real(self, b: Tensor, place: Tensor) -> Tensor:
        b = one_for_all(b, self.items)
        if self.start is not None:
            return place >= on_device_of(place, self.start, "padding(lengths)")[b]
        assert self.stop is not None
        return place < on_device_of(place, self.stop, "padding(lengths)")[b]

    def _ranges(self, length: int) -> list[slice]:
        if self.start is not None:
            return [slice(min(max(start, 0), length), length) for start in self.start.tolist()]
        assert self.stop is not None
        return [slice(0, min(max(stop, 0), length)) for stop in self.stop.tolist()]

    def __repr__(self) -> str:
        side = "" if self.start is None else ", side='left'"
        return f"padding({short(self.lengths)}{side}{', queries=True' if self.queries else ''})"


@dataclass(frozen=True, eq=False)
class _Documents(Mask):
    ids: Tensor
    sees_itself = True

    def check(self, queries: int, keys: int) -> None:
        if self.ids.shape[-1] < keys:
            raise ValueError(f"documents(ids) names {self.ids.shape[-1]} positions, but there are {keys} keys")

    @property
    def items(self) -> int:
        return 1 if self.ids.dim() == 1 else self.ids.shape[0]

    def at(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        ids = on_device_of(k, self.ids, "documents(ids)")
        length = ids.shape[-1]
        inside = (q >= 0) & (q < length)  # a position that the ids do not name is in no document
        q = q.clamp(0, length - 1)
        if ids.dim() == 1:
            return (ids[q] == ids[k]) & inside
        b = one_for_all(b, self.items)
        return (ids[b, q] == ids[b, k]) & inside

    def segments(self, length: int) -> list[slice] | None:
        if self.ids.dim() == 2 and self.ids.shape[0] != 1:
            return None
        ids, counts = torch.unique_consecutive(self.ids.flatten()[:length], return_counts=True)
        if ids.unique().numel() != ids.numel():  # a document that another interrupts
            return None
        ends = counts.cumsum(0).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def __repr__(self) -> str:
        return f"documents({short(self.ids)})"


@dataclass(frozen=True, eq=False)
class _Blocks(Mask):
    size: int
    pattern: Tensor | None

    @property
    def sees_itself(self) -> bool:
        return self.pattern is None

    @property
    def reach(self) -> Reach:
        return (self.size - 1, self.size - 1) if self.pattern is None else (None, None)

    def check(self, queries: int, keys: int) -> None:
        if self.pattern is None:
            return
        rows, columns = self.pattern.shape[-2:]
        need = -(-keys // self.size)
        if columns * self.size < keys or rows < need:
            raise ValueError(
                f"the pattern of blocks({self.size}, ...) is {rows} x {columns}, too small for {keys} keys, "
                f"which are {need} blocks"
            )

    @property
    def items(self) -> int:
        return 1 if self.pattern is None or self.pattern.dim() == 2 else self.pattern.shape[0]

    @property
    def heads(self) -> int:
        return 1 if self.pattern is None or self.pattern.dim() == 2 else self.pattern.shape[1]

    def at(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q, k = q // self.size, k // self.size
        if self.pattern is None:
            return q == k
        pattern = on_device_of(k, self.pattern, "blocks(size, pattern)")
        rows = pattern.shape[-2]
        inside, q = (q >= 0) & (q < rows), q.clamp(0, rows - 1)
        if pattern.dim() == 2:
            return pattern[q, k] & inside
        return pattern[one_for_all(b, self.items), one_for_all(h, self.heads), q, k] & inside

    def __repr__(self) -> str:
        return f"blocks({self.size}{'' if self.pattern is None else f', {short(self.pattern)}'})"


def causal() -> Mask:
    """A token looks at itself and back, never ahead."""
    return _Causal()


def window(size: int) -> Mask:
    """Less than ``size`` positions away, on either side; with ``causal()``: itself and the ``size - 1`` before."""
    return _Window(_positive("window(size)", size))


def dilated(size: int, step: int) -> Mask:
    """A window with gaps: less than ``size`` steps away on either side, ``step`` positions each; 1 is `window`."""
    return _Dilated(_positive("dilated(size)", size), _positive("dilated(step)", step))


def prefix(length: int | Tensor) -> Mask:
    """Everyone may look at the first keys: ``length`` is a number, or one a batch item, (B,).

    A prefix language model is ``causal() | prefix(length)``.
    """
    if isinstance(length, Tensor):
        return _Prefix(_integers("prefix(length)", length, 1))
    if isinstance(length, bool) or not isinstance(length, int) or length < 0:
        raise ValueError(f"prefix(length) takes a whole number of at least 0, not {length!r}")
    return _Prefix(length)


def padding(lengths: Tensor, *, side: str = "right", total: int | None = None, queries: bool = False) -> Mask:
    """Only real keys: ``lengths`` (B,) counts them, the padding stands on ``side``.

    A padded position still looks, at the real ones, unless ``queries`` is set; nobody reads what it finds.

    Args:
        lengths: (B,), whole numbers.
        side: "right" (real tokens first) or "left" (real tokens last).
        total: the padded length; needed on the left, where it says at which position the real tokens start.
        queries: a padded position does not look either: its row is zero, and need not be computed. For a sequence
            that looks at itself.

    Raises:
        ValueError: an unknown side; left padding without ``total``; a length above ``total``.
    """
    lengths = _integers("padding(lengths)", lengths, 1)
    if side not in ("right", "left"):
        raise ValueError(f"padding(side=) is 'right' or 'left', not {side!r}")
    if total is not None and lengths.numel() and int(lengths.max()) > total:
        raise ValueError(f"padding(lengths) counts {int(lengths.max())} tokens, more than total={total}")
    if side == "right":
        return _Padding(lengths, None, lengths, queries)
    if total is None:
        raise ValueError("left padding needs total=, the padded length, to know where the real tokens start")
    return _Padding(lengths, total - lengths, None, queries)


def documents(ids: Tensor) -> Mask:
    """Only within one's own document: ``ids`` (N,) or (B, N) names the document of every position."""
    require_tensor("documents(ids)", ids)
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
        require_tensor("blocks(pattern=)", pattern)
    if pattern is not None and (pattern.dtype != torch.bool or pattern.dim() not in (2, 4)):
        raise ValueError(
            f"blocks(pattern=) takes a Boolean tensor (query blocks, key blocks) or (batch, heads, ...), "
            f"not {pattern.dtype} of shape {tuple(pattern.shape)}"
        )
    return _Blocks(_positive("blocks(size)", size), pattern)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} takes a whole number of at least 1, not {value!r}")
    return value


def _integers(name: str, tensor: Tensor, dim: int) -> Tensor:
    require_tensor(name, tensor)
    if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.dim() != dim:
        raise ValueError(
            f"{name} takes whole numbers of shape (batch,), not {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return tensor
