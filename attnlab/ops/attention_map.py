"""Lazy attention weights: an operator that is applied to values, and materialized only in parts.

Applied to the identity it returns the attention weights; applied to indicators of blocks of keys, their sums over each
block, without materializing the matrix. This holds for softmax, and for every recurrence that is linear in its values.

Axes: B batch, H heads, N queries, M keys, w the width of the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, final

import torch
from torch import Tensor

from attnlab.masks.bound import slices
from attnlab.ops.arithmetic import Arithmetic, Cell

CHUNK = 256
"""Rows of the matrix that are materialized at a time."""

Choice = Sequence[int] | slice | Tensor | None
"""Rows or heads; None for all."""


@dataclass(frozen=True)
class ScoreOptions:
    """How scores are changed, see `AttentionMap.with_scores`; by default not at all."""

    temperature: float = 1.0
    scale: bool = True
    softcap: float | None = None
    sink: float | None = None

    @property
    def changes(self) -> frozenset[str]:
        """The options that differ from their defaults."""
        return frozenset(field.name for field in fields(self) if getattr(self, field.name) != field.default)

    def factor(self, width: int) -> float:
        """Return the factor of ``q kᵀ / √width``."""
        return (1.0 if self.scale else width**0.5) / self.temperature


class AttentionMap:
    """The base class of lazy attention weights. A subclass implements `apply`, and `_rows` where that is cheaper.

    One whose scores can be changed also implements `changes` and `_with_scores`; one with a formula for a weight,
    `_explain`.

    Args:
        shape: (B, H, N, M).
        like: a tensor with the dtype and the device of the weights.
    """

    implied: ClassVar[bool] = False
    """Whether the mechanism does not compute these weights, but its output equals their product with the values."""

    def __init__(self, shape: tuple[int, int, int, int], like: Tensor) -> None:
        self.shape, self._like = shape, like

    @property
    def changes(self) -> frozenset[str]:
        """The options of `with_scores` that these weights support."""
        return frozenset()

    @final
    def with_scores(
        self,
        *,
        temperature: float = 1.0,
        scale: bool = True,
        softcap: float | None = None,
        sink: float | None = None,
    ) -> AttentionMap:
        """Return the weights for changed scores; ``self`` if no option is given.

        Args:
            temperature: divides the products of queries and keys. A cap, and then biases and decays, come after it.
            scale: False leaves out the factor 1/√d of the products.
            softcap: the products become ``softcap · tanh(product / softcap)``; replaces a cap of the mechanism.
            sink: a logit in every row that takes weight and has no value; replaces the sinks of the mechanism.

        Raises:
            ValueError: for an option that is not in `changes`.
        """
        options = ScoreOptions(temperature, scale, softcap, sink)
        if not options.changes:
            return self
        if missing := options.changes - self.changes:
            raise ValueError(
                f"the weights of {type(self).__name__} cannot be changed by {', '.join(sorted(missing))}; "
                f"they support {', '.join(sorted(self.changes)) or 'no change'}"
            )
        return self._with_scores(options)

    def _with_scores(self, options: ScoreOptions) -> AttentionMap:
        raise NotImplementedError(f"{type(self).__name__} has no _with_scores")

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Return the weighted sums of these values.

        Args:
            values: (B, H, M, w), or with 1 in place of B or H.
            dropout: the probability of dropping a weight; 0 outside of training.

        Returns:
            (B, H, N, w).
        """
        raise NotImplementedError

    def materialize(self, rows: Choice = None, heads: Choice = None) -> Tensor:
        """Return the weights, or some rows and heads of them: (B, H, N, M), or (B, heads, rows, M).

        Raises:
            IndexError: for a row or a head out of range.
        """
        index = _index("row", rows, self.shape[2], self._like.device)
        return self._rows(index)[:, _index("head", heads, self.shape[1], self._like.device)]

    def stream(self, size: int = CHUNK) -> Iterator[tuple[slice, Tensor]]:
        """Yield all weights, ``size`` rows at a time: (slice of rows, (B, H, rows, M))."""
        for rows in slices(self.shape[2], size):
            yield rows, self.materialize(rows)

    def pooled(self, blocks: int | Tensor) -> Tensor:
        """Return the sum of the weights of each query over each block of keys: (B, H, N, blocks).

        Args:
            blocks: the number of keys per block; or the index of the block of each key, (M,) or (B, M).

        Raises:
            ValueError: for a size below one, or indices of another shape or dtype.
        """
        return self.apply(_indicators(blocks, self.shape[3], self._like))

    def entropy(self) -> Tensor:
        """Return the entropy of each row in nats, (B, H, N): 0 for a single key, ln M for equal weights."""
        parts = [torch.special.entr(part).sum(-1) for _, part in self.stream()]
        return torch.cat(parts, -1) if parts else self._like.new_zeros(self.shape[:3])

    def top(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the ``count`` largest weights of each query and their keys, both (B, H, N, count), descending."""
        count = min(count, self.shape[3])
        parts = [part.topk(count, -1) for _, part in self.stream()]
        if not parts:
            none = self._like.new_zeros(*self.shape[:3], count)
            return none, none.long()
        return torch.cat([part.values for part in parts], 2), torch.cat([part.indices for part in parts], 2)

    @final
    def arithmetic(self, head: int, query: int, key: int, batch: int = 0) -> Arithmetic:
        """Return the arithmetic of one attention weight, line by line, in the terms of the mechanism.

        Raises:
            IndexError: for an index out of range.
        """
        for name, index, count in zip(
            ("batch", "head", "query", "key"), (batch, head, query, key), self.shape, strict=True
        ):
            if not 0 <= index < count:
                raise IndexError(f"{name} {index} is out of range; there are {count}, counted from 0")
        lines = Arithmetic()
        self._explain(lines, Cell(batch, head, query, key))
        return lines

    def _explain(self, a: Arithmetic, cell: Cell) -> None:
        """Add the lines of one weight. A subclass gives those of its formula."""
        one = self._like.new_zeros(self.shape[3], 1)
        one[cell.key] = 1.0
        weight = self.apply(one[None, None])[cell.batch, cell.head, cell.query, 0]
        a.given("weight", weight, "the output for values that are 1 at this key and 0 at the others")

    def _rows(self, rows: Tensor) -> Tensor:
        """Return these rows, (B, H, rows, M), by applying the map to the identity, a chunk of keys at a time."""
        M, columns = self.shape[3], []
        for keys in slices(M, CHUNK):
            one = torch.zeros(M, keys.stop - keys.start, dtype=self._like.dtype, device=self._like.device)
            one[keys].fill_diagonal_(1.0)
            columns.append(self.apply(one[None, None])[:, :, rows])
        return torch.cat(columns, -1) if columns else self._like.new_zeros(*self.shape[:2], len(rows), 0)


class DenseMap(AttentionMap):
    """Weights that are materialized already, (B, H, N, M)."""

    def __init__(self, weights: Tensor) -> None:
        B, H, N, M = weights.shape
        super().__init__((B, H, N, M), weights)
        self._weights = weights

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        return torch.dropout(self._weights, dropout, True) @ values

    def _rows(self, rows: Tensor) -> Tensor:
        return self._weights[:, :, rows]


def _index(name: str, choice: Choice, count: int, device: torch.device) -> Tensor:
    every = torch.arange(count, device=device)
    if choice is None:
        return every
    if isinstance(choice, slice):
        return every[choice]
    index = torch.as_tensor(choice, device=device)
    if index.dim() != 1 or index.is_floating_point() or index.dtype == torch.bool:
        raise IndexError(f"{name}s must be a list of integers, not {choice!r}")
    wrong = index[(index < -count) | (index >= count)]
    if wrong.numel():
        raise IndexError(f"{name} {int(wrong[0])} is out of range; there are {count}, counted from 0")
    return index % count if count else index.long()


def _indicators(blocks: int | Tensor, keys: int, like: Tensor) -> Tensor:
    """Return (1 | B, 1, M, blocks), 1 where the key is in the block."""
    if isinstance(blocks, int):
        if isinstance(blocks, bool) or blocks < 1:
            raise ValueError(f"pooled(blocks) takes an integer of at least 1, not {blocks!r}")
        blocks = torch.arange(keys, device=like.device) // blocks
    if blocks.shape[-1] != keys or blocks.dim() not in (1, 2) or blocks.is_floating_point():
        raise ValueError(
            f"pooled(blocks) takes the block index of each key, integers of shape ({keys},) or "
            f"(batch, {keys}), not {blocks.dtype} of shape {tuple(blocks.shape)}"
        )
    count = int(blocks.max()) + 1 if blocks.numel() else 0
    return (blocks.unsqueeze(-1) == torch.arange(count, device=like.device)).to(like.dtype).reshape(-1, 1, keys, count)
