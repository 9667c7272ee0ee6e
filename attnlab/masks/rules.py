"""The rules by name: what a query may look at for its place, and for the place, the item or the head that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor

from attnlab.masks.clauses import Clause, Clauses, conjunction, disjunction
from attnlab.masks.mask import Band, Mask, integers, on_device_of, one_for_all, require_tensor, short
from attnlab.utils.tracing import may_check, may_read

PRIME = 2**31 - 1


@dataclass(frozen=True, eq=False)
class _Causal(Mask):
    includes_diagonal = True
    is_causal_only = True
    is_relative = True
    is_contiguous = True
    band = (None, 0)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k <= q

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(stop=q + 1)]

    def __repr__(self) -> str:
        return "causal()"


@dataclass(frozen=True, eq=False)
class _SlidingWindow(Mask):
    size: int
    includes_diagonal = True
    is_relative = True
    is_contiguous = True

    @property
    def band(self) -> Band:
        return (self.size - 1, self.size - 1)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k).abs() < self.size

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(start=q - self.size + 1, stop=q + self.size)]

    def __repr__(self) -> str:
        return f"sliding_window({self.size})"


@dataclass(frozen=True, eq=False)
class _Strided(Mask):
    gap: int
    is_stride_only = True
    includes_diagonal = True
    is_relative = True
    is_sparse = True

    @property
    def stride(self) -> int:
        return self.gap

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q - k) % self.gap == 0

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(stride=self.gap)]

    def __repr__(self) -> str:
        return f"strided({self.gap})"


@dataclass(frozen=True, eq=False)
class _GlobalTokens(Mask):
    count: int
    is_sparse = True

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q < self.count) | (k < self.count)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(rows=q < self.count), Clause(stop=torch.full_like(q, self.count))]

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        return k < self.count if queries.start >= self.count else torch.ones_like(k, dtype=torch.bool)

    def __repr__(self) -> str:
        return f"global_tokens({self.count})"


@dataclass(frozen=True, eq=False)
class _BlockSummary(Mask):
    size: int
    count: int
    is_sparse = True

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return k % self.size >= self.size - self.count

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        return [Clause(keys=self.allowed(b, h, q, k))]

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        return k % self.size >= self.size - self.count

    def __repr__(self) -> str:
        return f"block_summary({self.size}, {self.count})"


@dataclass(frozen=True, eq=False)
class _PerHead(Mask):
    counts: tuple[int, ...]
    rules: tuple[Mask, ...]

    @property
    def num_heads(self) -> int:
        return sum(self.counts)

    @property
    def batch_size(self) -> int:
        return max(rule.batch_size for rule in self.rules)

    @property
    def parts(self) -> tuple[Mask, ...]:
        return self.rules

    @property
    def is_relative(self) -> bool:
        return all(rule.is_relative for rule in self.rules)

    @property
    def includes_diagonal(self) -> bool:
        return all(rule.includes_diagonal for rule in self.rules)  # one head alone would say nothing of a conjunction

    @property
    def head_groups(self) -> list[tuple[slice, Mask]]:
        ends = accumulate(self.counts)
        return [(slice(e - n, e), rule) for e, n, rule in zip(ends, self.counts, self.rules, strict=True)]

    def to(self, device: torch.device | str) -> Self:
        return replace(self, rules=tuple(rule.to(device) for rule in self.rules))

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        (first, rule), *others = self.head_groups
        found = rule.allowed(b, h, q, k) & (h < first.stop)
        for own, rule in others:
            found = found | (rule.allowed(b, h, q, k) & (h >= own.start) & (h < own.stop))
        return found

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        union: Clauses = []
        for heads, rule in self.head_groups:
            chosen = [Clause(rows=(h >= heads.start) & (h < heads.stop))]
            union = disjunction(union, conjunction(rule.clauses(b, h, q, k), chosen))
        return union

    def __repr__(self) -> str:
        return f"per_head({' + '.join(f'{n} * [{rule}]' for n, rule in zip(self.counts, self.rules, strict=True))})"


@dataclass(frozen=True, eq=False)
class _Prefix(Mask):
    length: int | Tensor

    @property
    def batch_size(self) -> int:
        return self.length.shape[0] if isinstance(self.length, Tensor) else 1

    @property
    def is_sparse(self) -> bool:
        return isinstance(self.length, int)

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        return k < self.length if isinstance(self.length, int) else torch.ones_like(k, dtype=torch.bool)

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if isinstance(self.length, Tensor):
            return k < on_device_of(k, self.length, "prefix(length)")[one_for_all(b, self.batch_size)]
        return k < self.length

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        if isinstance(self.length, Tensor):
            return [Clause(stop=on_device_of(k, self.length, "prefix(length)")[one_for_all(b, self.batch_size)])]
        return [Clause(stop=torch.full_like(q, self.length))]

    def __repr__(self) -> str:
        return f"prefix({short(self.length)})"


@dataclass(frozen=True, eq=False)
class _Padding(Mask):
    """Positions from ``start`` up to, not including, ``stop`` are real; None leaves that end open."""

    lengths: Tensor
    start: Tensor | None
    stop: Tensor | None
    mask_queries: bool
    is_contiguous = True
    is_padding = True

    @property
    def batch_size(self) -> int:
        return self.lengths.shape[0]

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self._real(b, k) & self._real(b, q) if self.mask_queries else self._real(b, k)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        item = one_for_all(b, self.batch_size)
        start, stop = (
            None if bound is None else on_device_of(k, bound, "padding(lengths)")[item]
            for bound in (self.start, self.stop)
        )
        return [Clause(start, stop, rows=self._real(b, q) if self.mask_queries else None)]

    def key_ranges(self, keys: int) -> list[slice] | None:
        return None if self.mask_queries else self._ranges(keys)

    def token_ranges(self, length: int) -> list[slice] | None:
        return self._ranges(length) if self.mask_queries else None

    def check_lengths(self, length: int) -> None:
        if may_check(self.lengths) and self.lengths.numel() and (most := int(self.lengths.max())) > length:
            raise ValueError(
                f"padding(lengths) counts {most} tokens in one sequence, but the keys are {length} long; "
                "give at most that many"
            )

    def _real(self, b: Tensor, place: Tensor) -> Tensor:
        b = one_for_all(b, self.batch_size)
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
        return f"padding({short(self.lengths)}{side}{', mask_queries=True' if self.mask_queries else ''})"


@dataclass(frozen=True, eq=False)
class _Documents(Mask):
    ids: Tensor
    includes_diagonal = True
    is_segments = True

    def check(self, queries: int, keys: int) -> None:
        if self.ids.shape[-1] < keys:
            raise ValueError(f"documents(ids) names {self.ids.shape[-1]} positions, but there are {keys} keys")

    @property
    def batch_size(self) -> int:
        return 1 if self.ids.dim() == 1 else self.ids.shape[0]

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        ids = on_device_of(k, self.ids, "documents(ids)")
        length = ids.shape[-1]
        if not length:
            return torch.zeros_like(q == k)
        inside = (q >= 0) & (q < length)  # a position that the ids do not name is in no document
        q = q.clamp(0, length - 1)
        if ids.dim() == 1:
            return (ids[q] == ids[k]) & inside
        b = one_for_all(b, self.batch_size)
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
    neighbors: int = 0

    @property
    def includes_diagonal(self) -> bool:
        return self.pattern is None

    @property
    def band(self) -> Band:
        far = (self.neighbors + 1) * self.size - 1
        return (far, far) if self.pattern is None else (None, None)

    @property
    def is_sparse(self) -> bool:
        return True

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        if self.pattern is None:
            return super().candidate_keys(queries, k)
        first = max(queries.start, 0)  # a query before the first key is in no block of the pattern
        rows = self.pattern[..., first // self.size : -(-max(queries.stop, 0) // self.size), :].any(-2)
        return rows.flatten(0, -2).any(0)[k // self.size] if rows.dim() > 1 else rows[k // self.size]

    def check(self, queries: int, keys: int) -> None:
        if self.pattern is None:
            return
        rows, columns = self.pattern.shape[-2:]
        need = -(-keys // self.size)
        if columns * self.size < keys or rows < need:
            raise ValueError(
                f"the pattern of block_sparse({self.size}, ...) is {rows} x {columns}, too small for {keys} keys, "
                f"which are {need} blocks"
            )

    @property
    def batch_size(self) -> int:
        return 1 if self.pattern is None or self.pattern.dim() == 2 else self.pattern.shape[0]

    @property
    def num_heads(self) -> int:
        return 1 if self.pattern is None or self.pattern.dim() == 2 else self.pattern.shape[1]

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q, k = q // self.size, k // self.size
        if self.pattern is None:
            return (q - k).abs() <= self.neighbors
        pattern = on_device_of(k, self.pattern, "block_sparse(size, pattern)")
        rows = pattern.shape[-2]
        if not pattern.numel():
            return torch.zeros_like(q == k)
        inside, q = (q >= 0) & (q < rows), q.clamp(0, rows - 1)
        if pattern.dim() == 2:
            return pattern[q, k] & inside
        return pattern[one_for_all(b, self.batch_size), one_for_all(h, self.num_heads), q, k] & inside

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        if self.pattern is not None:
            return None
        block = q // self.size
        return [Clause((block - self.neighbors) * self.size, (block + self.neighbors + 1) * self.size)]

    def __repr__(self) -> str:
        if self.pattern is not None:
            return f"block_sparse({self.size}, {short(self.pattern)})"
        return f"block_local({self.size}{f', neighbors={self.neighbors}' if self.neighbors else ''})"


@dataclass(frozen=True, eq=False)
class _RandomBlocks(Mask):
    size: int
    count: int
    seed: int | Tensor
    _known: list[Tensor] = field(default_factory=list, init=False, repr=False)
    """What each draw of the first blocks is, once it was asked for."""
    is_sparse = True

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q, k = q // self.size, k // self.size
        if q.dim() != 2 or q.shape[1] != 1 or not may_read(k.device):
            return self._linked(q, k)
        (rows, row), (columns, column) = (t.flatten().unique_consecutive(return_inverse=True) for t in (q, k))
        return self._linked(rows[:, None], columns)[row[:, None], column]  # each block is asked once

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        if not k.numel():
            return torch.zeros_like(k, dtype=torch.bool)
        rows = torch.arange(queries.start // self.size, -(-queries.stop // self.size), device=k.device)
        first = int(k[0]) // self.size
        columns = torch.arange(first, int(k[-1]) // self.size + 1, device=k.device)
        return self._linked(rows[:, None], columns).any(0)[k // self.size - first]

    def _linked(self, a: Tensor, b: Tensor) -> Tensor:
        """Whether the later of two blocks has drawn the earlier."""
        early, late = torch.minimum(a, b), torch.maximum(a, b)
        found = torch.zeros_like(early, dtype=torch.bool)
        for drawn in (
            self._looked_up(late) if may_read(late.device) else map(partial(self._drawn, late), range(self.count))
        ):
            found = found | (drawn == early)
        return found & (early < late)

    def _drawn(self, block: Tensor, draw: int) -> Tensor:
        """Which block this one draws, by a hash: it follows from nothing but the seed and where the block is."""
        seed = self.seed
        if isinstance(seed, Tensor):
            seed = on_device_of(block, seed, "random_blocks(seed)")
        seed = seed % PRIME
        number = (block * 48271 + (draw + 1) * 69621 + seed) % PRIME
        for _ in range(3):
            number = (number * number + seed + 40692) % PRIME  # below 2^62
        return number % block.clamp(min=1)

    def _looked_up(self, block: Tensor) -> list[Tensor]:
        count = int(block.max()) + 1 if block.numel() else 0
        if not self._known or len(self._known[0]) < count:
            every = torch.arange(2 * count, device=block.device)
            self._known[:] = [self._drawn(every, draw) for draw in range(self.count)]
        return [known[block] for known in self._known]

    def __repr__(self) -> str:
        return f"random_blocks({self.size}, {self.count}, {short(self.seed)})"


def causal() -> Mask:
    """A token looks at itself and back, never ahead."""
    return _Causal()


def sliding_window(size: int) -> Mask:
    """Less than ``size`` positions away, on either side; with ``causal()``: itself and the ``size - 1`` before."""
    return _SlidingWindow(_positive("sliding_window(size)", size))


def dilated(size: int, step: int) -> Mask:
    """A window with gaps: less than ``size`` steps away on either side, ``step`` positions each."""
    size, step = _positive("dilated(size)", size), _positive("dilated(step)", step)
    return sliding_window((size - 1) * step + 1) & strided(step)


def strided(step: int) -> Mask:
    """Itself, and every ``step``-th position before and after."""
    return _Strided(_positive("strided(step)", step))


def global_tokens(count: int) -> Mask:
    """The first ``count`` positions look at everything, and everything looks at them; with ``|`` beside another rule.

    Source: Beltagy et al. 2020, "Longformer", section 3.1.
    """
    return _GlobalTokens(_positive("global_tokens(count)", count))


def block_summary(size: int, count: int = 1) -> Mask:
    """The last ``count`` positions of every block of ``size``, for all queries.

    Source: Child et al. 2019, "Generating Long Sequences with Sparse Transformers", section 4.3 (fixed attention).
    """
    size, count = _positive("block_summary(size)", size), _positive("block_summary(count)", count)
    if count > size:
        raise ValueError(f"block_summary(size, count) takes at most as many as a block has: {count} of {size}")
    return _BlockSummary(size, count)


def per_head(rules: Sequence[Mask]) -> Mask:
    """A rule for each head, in their order. Heads that follow each other and share one are computed together.

    Raises:
        ValueError: for no rule, or one that already speaks of several heads.
    """
    if not rules:
        raise ValueError("per_head(rules) takes a rule for each head, not none")
    if any(rule.num_heads > 1 for rule in rules):
        raise ValueError("per_head(rules) takes rules of one head each, and one of these speaks of several")
    own, counts = [rules[0]], [0]
    for rule in rules:
        if rule is not own[-1]:
            own.append(rule)
            counts.append(0)
        counts[-1] += 1
    return own[0] if len(own) == 1 else _PerHead(tuple(counts), tuple(own))


def prefix(length: int | Tensor) -> Mask:
    """Everyone may look at the first keys: ``length`` is a number, or one a batch item, (B,).

    A prefix language model is ``causal() | prefix(length)``.
    """
    if isinstance(length, Tensor):
        return _Prefix(_counts("prefix(length)", length))
    if isinstance(length, bool) or not isinstance(length, int) or length < 0:
        raise ValueError(f"prefix(length) takes a whole number of at least 0, not {length!r}")
    return _Prefix(length)


def padding(lengths: Tensor, *, side: str = "right", max_length: int | None = None, mask_queries: bool = False) -> Mask:
    """Only real keys: ``lengths`` (B,) counts them, the padding stands on ``side``.

    A padded position still looks, at the real ones, unless ``mask_queries`` is set; nobody reads what it finds.

    Args:
        lengths: (B,), whole numbers.
        side: "right" (real tokens first) or "left" (real tokens last).
        max_length: the padded length; needed on the left, where it says at which position the real tokens start.
        mask_queries: a padded position does not look either: its row is zero, and need not be computed. For a sequence
            that looks at itself.

    Raises:
        ValueError: an unknown side; left padding without ``max_length``; a negative length, or one that does not fit.
    """
    lengths = _counts("padding(lengths)", lengths)
    if side not in ("right", "left"):
        raise ValueError(f"padding(side=) is 'right' or 'left', not {side!r}")
    if max_length is not None and may_check(lengths) and lengths.numel() and int(lengths.max()) > max_length:
        raise ValueError(f"padding(lengths) counts {int(lengths.max())} tokens, more than max_length={max_length}")
    if side == "right":
        return _Padding(lengths, None, lengths, mask_queries)
    if max_length is None:
        raise ValueError("left padding needs max_length=, the padded length, to know where the real tokens start")
    return _Padding(lengths, max_length - lengths, None, mask_queries)


def documents(ids: Tensor) -> Mask:
    """Only within one's own document: ``ids`` (N,) or (B, N) names the document of every position."""
    return _Documents(integers("documents(ids)", ids, ("length",), ("batch", "length")))


def random_blocks(size: int, count: int, seed: int | Tensor) -> Mask:
    """Blocks of ``size`` positions, each linked to ``count`` of those before it, drawn at random; a link is looked
    along both ways, and leads neither into one's own block nor depends on how long the sequence is.

    Args:
        size: positions a block.
        count: how many times a block draws; it may draw one twice.
        seed: what is drawn follows from it; a whole number, or a tensor of one.

    Source: Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences", section 2, for the random graph.
    """
    size, count = _positive("random_blocks(size)", size), _positive("random_blocks(count)", count)
    if isinstance(seed, Tensor):
        return _RandomBlocks(size, count, integers("random_blocks(seed)", seed, ()))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"random_blocks(seed) takes one whole number, or a tensor of one, not {seed!r}")
    return _RandomBlocks(size, count, seed)


def block_local(size: int, *, neighbors: int = 0) -> Mask:
    """Blocks of ``size`` positions: a query attends to its own and to ``neighbors`` on either side."""
    if isinstance(neighbors, bool) or not isinstance(neighbors, int) or neighbors < 0:
        raise ValueError(f"block_local(neighbors=) takes a whole number of at least 0, not {neighbors!r}")
    return _Blocks(_positive("block_local(size)", size), None, neighbors)


def block_sparse(size: int, pattern: Tensor) -> Mask:
    """Blocks of ``size`` positions: a query attends to the blocks that ``pattern`` allows for its own.

    Args:
        size: positions per block.
        pattern: Boolean (query blocks, key blocks), or with leading batch and head axes.
    """
    require_tensor("block_sparse(pattern)", pattern)
    if pattern.dtype != torch.bool or pattern.dim() not in (2, 4):
        raise ValueError(
            f"block_sparse(pattern) takes a Boolean tensor (query blocks, key blocks) or (batch, heads, ...), "
            f"not {pattern.dtype} of shape {tuple(pattern.shape)}"
        )
    return _Blocks(_positive("block_sparse(size)", size), pattern)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} takes a whole number of at least 1, not {value!r}")
    return value


def _counts(name: str, tensor: Tensor) -> Tensor:
    """Whole numbers of at least 0, one per batch item, as int64."""
    counts = integers(name, tensor, ("batch",))
    if may_check(counts) and counts.numel() and (least := int(counts.min())) < 0:
        raise ValueError(f"{name} takes whole numbers of at least 0, not {least}")
    return counts
