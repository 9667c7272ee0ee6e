"""What a mechanism computes between its projections and its output: who looks at whom, applied to any values.

Given the identity as values, what comes out of a core is its attention map; given the indicators of a few blocks of
keys, that map summed over each block, and the whole is never written down. This serves softmax, and every recurrence
that is linear in its values.

Axes: B batch, H heads, N queries, M keys, w the width of the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attnlab.masks.bound import slices

CHUNK = 256
"""Rows of a map that are written down at a time."""

Choice = Sequence[int] | slice | Tensor | None
"""Which rows or heads: all where None."""


class AttentionMap:
    """A map that need not be written down. A subclass writes `apply`, and `_rows` where that is cheaper.

    Args:
        shape: (B, H, N, M).
        like: a tensor of the map's dtype, on its device.
    """

    def __init__(self, shape: tuple[int, int, int, int], like: Tensor) -> None:
        self.shape, self._like = shape, like

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """What each query gets where the keys carry these values.

        Args:
            values: (B, H, M, w), or with 1 in place of B or H.
            dropout: the probability of dropping a weight; 0 outside of training.

        Returns:
            (B, H, N, w).
        """
        raise NotImplementedError

    def materialize(self, rows: Choice = None, heads: Choice = None) -> Tensor:
        """The map, or some of its rows and heads: (B, H, N, M), or (B, heads, rows, M).

        Raises:
            IndexError: a row or a head that is not there.
        """
        chosen = _chosen("row", rows, self.shape[2], self._like.device)
        return self._rows(chosen)[:, _chosen("head", heads, self.shape[1], self._like.device)]

    def stream(self, size: int = CHUNK) -> Iterator[tuple[slice, Tensor]]:
        """The whole map, ``size`` rows at a time: (which rows, (B, H, rows, M))."""
        for rows in slices(self.shape[2], size):
            yield rows, self.materialize(rows)

    def pooled(self, blocks: int | Tensor) -> Tensor:
        """How much each query gives to each block of keys, exactly: (B, H, N, blocks).

        Args:
            blocks: how many keys make a block; or for every key the number of its block, (M,) or (B, M).

        Raises:
            ValueError: for a size below one, or numbers that do not name every key.
        """
        return self.apply(_indicators(blocks, self.shape[3], self._like))

    def entropy(self) -> Tensor:
        """How far each query spreads its looks, in nats: (B, H, N); 0 for one key alone, ln M for all alike."""
        found = [torch.special.entr(part).sum(-1) for _, part in self.stream()]
        return torch.cat(found, -1) if found else self._like.new_zeros(self.shape[:3])

    def top(self, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` largest weights of each query and their keys, (B, H, N, count) both, largest first."""
        count = min(count, self.shape[3])
        found = [part.topk(count, -1) for _, part in self.stream()]
        if not found:
            none = self._like.new_zeros(*self.shape[:3], count)
            return none, none.long()
        return torch.cat([part.values for part in found], 2), torch.cat([part.indices for part in found], 2)

    def _rows(self, rows: Tensor) -> Tensor:
        """These rows of the map, (B, H, rows, M): what the values of one key at a time give."""
        M, columns = self.shape[3], []
        for keys in slices(M, CHUNK):
            one = torch.zeros(M, keys.stop - keys.start, dtype=self._like.dtype, device=self._like.device)
            one[keys].fill_diagonal_(1.0)
            columns.append(self.apply(one[None, None])[:, :, rows])
        return torch.cat(columns, -1) if columns else self._like.new_zeros(*self.shape[:2], len(rows), 0)


class DenseMap(AttentionMap):
    """A map that was written down, (B, H, N, M)."""

    def __init__(self, map: Tensor) -> None:
        B, H, N, M = map.shape
        super().__init__((B, H, N, M), map)
        self._map = map

    def apply(self, values: Tensor, *, dropout: float = 0.0) -> Tensor:
        """What each query gets."""
        return torch.dropout(self._map, dropout, True) @ values

    def _rows(self, rows: Tensor) -> Tensor:
        return self._map[:, :, rows]


def _chosen(name: str, choice: Choice, count: int, device: torch.device) -> Tensor:
    every = torch.arange(count, device=device)
    if choice is None:
        return every
    if isinstance(choice, slice):
        return every[choice]
    given = torch.as_tensor(choice, device=device)
    if given.dim() != 1 or given.is_floating_point() or given.dtype == torch.bool:
        raise IndexError(f"{name}s are chosen by a list of whole numbers, not by {choice!r}")
    wrong = given[(given < -count) | (given >= count)]
    if wrong.numel():
        raise IndexError(f"there is no {name} {int(wrong[0])}; there are {count}, counted from 0")
    return given % count if count else given.long()


def _indicators(blocks: int | Tensor, keys: int, like: Tensor) -> Tensor:
    """(1 | B, 1, M, blocks): 1 where the key is in the block."""
    if isinstance(blocks, int):
        if isinstance(blocks, bool) or blocks < 1:
            raise ValueError(f"pooled(blocks) takes a whole number of at least 1, not {blocks!r}")
        blocks = torch.arange(keys, device=like.device) // blocks
    if blocks.shape[-1] != keys or blocks.dim() not in (1, 2) or blocks.is_floating_point():
        raise ValueError(
            f"pooled(blocks) takes the number of every key's block, whole numbers of shape ({keys},) or "
            f"(batch, {keys}), not {blocks.dtype} of shape {tuple(blocks.shape)}"
        )
    count = int(blocks.max()) + 1 if blocks.numel() else 0
    return (blocks.unsqueeze(-1) == torch.arange(count, device=like.device)).to(like.dtype).reshape(-1, 1, keys, count)
