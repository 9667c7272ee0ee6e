"""Masks over blocks of positions: block-local, block-sparse, block summaries, random blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnlab.masks.arguments import as_int64, check_int, require_tensor
from attnlab.masks.clauses import Clause, Clauses
from attnlab.masks.mask import Mask
from attnlab.utils.tracing import can_inspect_device

PRIME = 2**31 - 1


@dataclass(frozen=True, eq=False, repr=False)
class BlockLocalMask(Mask):
    """Each query attends to its own block of ``size`` positions and to ``neighbors`` blocks on either side."""

    size: int
    neighbors: int = 0
    includes_diagonal = is_sparse = True

    def __post_init__(self) -> None:
        check_int("block_local(size)", self.size)
        check_int("block_local(neighbors=)", self.neighbors, at_least=0)
        distance = (self.neighbors + 1) * self.size - 1
        self._set(band=(distance, distance))

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q // self.size - k // self.size).abs() <= self.neighbors

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        block = q // self.size
        return [Clause((block - self.neighbors) * self.size, (block + self.neighbors + 1) * self.size)]

    def __repr__(self) -> str:
        return f"block_local({self.size}{f', neighbors={self.neighbors}' if self.neighbors else ''})"


@dataclass(frozen=True, eq=False, repr=False)
class BlockSparseMask(Mask):
    """Each query attends to the blocks that ``pattern`` allows for its own block; see `block_sparse`."""

    size: int
    pattern: Tensor
    _name = "block_sparse"
    is_sparse = has_fixed_size = True

    def __post_init__(self) -> None:
        check_int("block_sparse(size)", self.size)
        require_tensor("block_sparse(pattern)", self.pattern)
        if self.pattern.dtype != torch.bool or self.pattern.dim() not in (2, 4):
            raise ValueError(
                f"block_sparse(pattern) must be a Boolean tensor (query blocks, key blocks) or (batch, heads, ...), "
                f"got {self.pattern.dtype} of shape {tuple(self.pattern.shape)}"
            )
        batch_size, num_heads = (1, 1) if self.pattern.dim() == 2 else self.pattern.shape[:2]
        self._set(batch_size=batch_size, num_heads=num_heads, tensors=(self.pattern,))

    def check(self, queries: int, keys: int) -> None:
        rows, columns = self.pattern.shape[-2:]
        blocks = -(-keys // self.size)
        if columns * self.size < keys or rows < blocks:
            raise ValueError(
                f"the pattern of block_sparse({self.size}, ...) is {rows} x {columns}, too small for {keys} keys, "
                f"which are {blocks} blocks"
            )

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        first = max(queries.start, 0)  # a query before the first key is in no block
        rows = self.pattern[..., first // self.size : -(-max(queries.stop, 0) // self.size), :].any(-2)
        return rows.flatten(0, -2).any(0)[k // self.size] if rows.dim() > 1 else rows[k // self.size]

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q, k = q // self.size, k // self.size
        pattern, rows = self.pattern, self.pattern.shape[-2]
        if not pattern.numel():
            return torch.zeros_like(q == k)
        inside, q = (q >= 0) & (q < rows), q.clamp(0, rows - 1)
        if pattern.dim() == 2:
            return pattern[q, k] & inside
        b = b if self.batch_size > 1 else torch.zeros_like(b)
        h = h if self.num_heads > 1 else torch.zeros_like(h)
        return pattern[b, h, q, k] & inside


@dataclass(frozen=True, eq=False, repr=False)
class BlockSummaryMask(Mask):
    """All queries attend to the last ``count`` positions of every block of ``size``."""

    size: int
    count: int = 1
    _name = "block_summary"
    is_sparse = True

    def __post_init__(self) -> None:
        check_int("block_summary(size)", self.size)
        check_int("block_summary(count)", self.count)
        if self.count > self.size:
            raise ValueError(f"block_summary(size, count): count ({self.count}) must be at most size ({self.size})")

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k % self.size >= self.size - self.count

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(keys=self.allowed(b, h, q, k))]

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        return k % self.size >= self.size - self.count


@dataclass(frozen=True, eq=False, repr=False)
class RandomBlocksMask(Mask):
    """Each block of positions is linked to randomly drawn earlier blocks; see `random_blocks`."""

    size: int
    count: int
    seed: int | Tensor
    _draws: list[Tensor] = field(default_factory=list, init=False)
    """The block drawn by each of the first blocks, per draw; filled when it is needed."""
    _name = "random_blocks"
    is_sparse = True

    def __post_init__(self) -> None:
        check_int("random_blocks(size)", self.size)
        check_int("random_blocks(count)", self.count)
        if isinstance(self.seed, Tensor):
            seed = as_int64("random_blocks(seed)", self.seed, ())
            self._set(seed=seed, tensors=(seed,))
        elif isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"random_blocks(seed) must be an integer, or a tensor of one, got {self.seed!r}")

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q, k = q // self.size, k // self.size
        if q.dim() != 2 or q.shape[1] != 1 or not can_inspect_device(k.device):
            return self._linked(q, k)
        (rows, row), (columns, column) = (t.flatten().unique_consecutive(return_inverse=True) for t in (q, k))
        return self._linked(rows[:, None], columns)[row[:, None], column]  # evaluated once per block

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        if not k.numel():
            return torch.zeros_like(k, dtype=torch.bool)
        rows = torch.arange(queries.start // self.size, -(-queries.stop // self.size), device=k.device)
        first = int(k[0]) // self.size
        columns = torch.arange(first, int(k[-1]) // self.size + 1, device=k.device)
        return self._linked(rows[:, None], columns).any(0)[k // self.size - first]

    def _linked(self, a: Tensor, b: Tensor) -> Tensor:
        """Whether the later of two blocks has drawn the earlier one."""
        early, late = torch.minimum(a, b), torch.maximum(a, b)
        linked = torch.zeros_like(early, dtype=torch.bool)
        for drawn in self._drawn_by(late):
            linked = linked | (drawn == early)
        return linked & (early < late)

    def _drawn_by(self, block: Tensor) -> Iterable[Tensor]:
        """The block that each of these blocks draws, once per draw."""
        if not can_inspect_device(block.device):
            return (self._hash(block, draw) for draw in range(self.count))
        count = int(block.max()) + 1 if block.numel() else 0
        if not self._draws or len(self._draws[0]) < count:
            blocks = torch.arange(2 * count, device=block.device)
            self._draws[:] = [self._hash(blocks, draw) for draw in range(self.count)]
        return [drawn[block] for drawn in self._draws]

    def _hash(self, block: Tensor, draw: int) -> Tensor:
        """A hash of the seed, the draw and the block's index, so that the length of the sequence does not matter."""
        seed = self.seed % PRIME
        value = (block * 48271 + (draw + 1) * 69621 + seed) % PRIME
        for _ in range(3):
            value = (value * value + seed + 40692) % PRIME  # below 2^62
        return value % block.clamp(min=1)


def block_local(size: int, *, neighbors: int = 0) -> Mask:
    """Each query attends to its own block of ``size`` positions and to ``neighbors`` blocks on either side."""
    return BlockLocalMask(size, neighbors)


def block_sparse(size: int, pattern: Tensor) -> Mask:
    """Each query attends to the blocks of ``size`` positions that ``pattern`` allows for its own block.

    Args:
        size: positions per block.
        pattern: Boolean (query blocks, key blocks), or with leading batch and head axes; True where all queries of
            the one block may attend to all keys of the other.
    """
    return BlockSparseMask(size, pattern)


def block_summary(size: int, count: int = 1) -> Mask:
    """All queries attend to the last ``count`` positions of every block of ``size``.

    Source: Child et al. 2019, "Generating Long Sequences with Sparse Transformers", section 4.3 (fixed attention).
    """
    return BlockSummaryMask(size, count)


def random_blocks(size: int, count: int, seed: int | Tensor) -> Mask:
    """Each block of ``size`` positions is linked to ``count`` randomly drawn earlier blocks.

    Both blocks of a link attend to each other. No link leads from a block to itself, and the links do not depend on the
    length of the sequence.

    Args:
        size: positions per block.
        count: draws per block; the same block may be drawn twice.
        seed: an integer, or a tensor of one.

    Source: Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", section 2, for the random graph.
    """
    return RandomBlocksMask(size, count, seed)
