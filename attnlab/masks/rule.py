"""The interface between a mask and the code that evaluates it.

Axes: B batch, H heads, N_q queries, N_k keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnlab.masks.clauses import Clauses

Band = tuple[int | None, int | None]
"""Number of positions (back, ahead); None where there is no limit."""


class Rule:
    """Which query positions may attend to which key positions, and the properties by which work can be skipped.

    A subclass implements `allowed` and overrides the properties that hold for it. The defaults are always correct, but
    every masked block is then computed.
    """

    batch_size: int = 1
    """Number of batch items that the rule distinguishes; 1 if it is the same for all."""
    num_heads: int = 1
    """Number of heads that the rule distinguishes; 1 if it is the same for all."""
    tensors: tuple[Tensor, ...] = ()
    """The tensors that the rule holds, which must be on the device of the layer."""
    has_fixed_size: bool = False
    """Whether the rule fits certain numbers of queries and keys only, so that `check` must be called."""
    max_sequence: int = 0
    """The longest sequence that the rule names; 0 if it names none, or where the values cannot be read."""
    by_position: bool = True
    """Whether `allowed` accepts any positions. A materialized mask returns all of its rows instead."""

    band: Band = (None, None)
    """The largest distance between a query and an allowed key: (back, ahead)."""
    stride: int = 1
    """A divisor of the distance between a query and any allowed key."""
    is_stride_only: bool = False
    """Whether every key whose distance is a multiple of `stride` is allowed."""
    is_sparse: bool = False
    """Whether a few queries attend to few keys only, which `candidate_keys` lists."""
    is_relative: bool = False
    """Whether the rule depends only on the distance between query and key."""
    is_contiguous: bool = False
    """Whether each query attends to one range of keys without gaps, or to none."""
    is_causal_only: bool = False
    """Whether the rule is ``causal()`` and nothing else."""
    is_segments: bool = False
    """Whether the rule separates the documents of a packed row."""
    is_padding: bool = False
    """Whether the excluded positions hold no token at all."""
    includes_diagonal: bool = False
    """Whether every query may attend to its own position, so that no row is fully masked."""
    head_groups: list[tuple[slice, Any]] | None = None
    """If the rule differs per head: consecutive heads that share a rule, and that rule."""
    parts: tuple[Rule, ...] = ()
    """The rules that this one combines."""

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        """Whether query ``q`` of head ``h`` in batch item ``b`` may attend to key ``k``, elementwise.

        The result may depend on these four only: it is evaluated for parts of the matrix, and in kernels for single
        elements.

        Args:
            b: batch items, (B, 1, 1, 1), or any shape that broadcasts with the others.
            h: heads, (H, 1, 1).
            q: query positions, (N_q, 1).
            k: key positions, (1, N_k).

        Returns:
            Boolean, of the shape to which the arguments that matter broadcast.
        """
        raise NotImplementedError

    @property
    def conjuncts(self) -> tuple[Rule, ...]:
        """The rules that must all allow a key: (a, b, c) for ``a & b & c``."""
        return (self,)

    def check(self, queries: int, keys: int) -> None:
        """Raise ValueError if the rule does not fit ``queries`` and ``keys``."""
        for part in self.parts:
            part.check(queries, keys)

    def check_lengths(self, length: int) -> None:
        """Raise ValueError if the rule names a sequence longer than ``length``."""
        if self.max_sequence > length:
            raise ValueError(
                f"padding(lengths) counts {self.max_sequence} tokens in one sequence, but there are only {length} keys"
            )

    def candidate_keys(self, queries: range, k: Tensor) -> Tensor:
        """Which of the keys ``k`` (N_k,) any of these queries may attend to, Boolean (N_k,).

        Keys that are not allowed may be included; allowed keys are never left out.
        """
        back, ahead = self.band
        candidates = torch.ones_like(k, dtype=torch.bool)
        if back is not None:
            candidates = candidates & (k >= queries.start - back)
        return candidates if ahead is None else candidates & (k < queries.stop + ahead)

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        """The rule as a union of key ranges, or None if it has no such form.

        Fully masked rows are found from it without a matrix. Takes the arguments of `allowed`.
        """
        return None

    def key_ranges(self, keys: int) -> list[slice] | None:
        """The range of allowed keys per batch item, if that is the whole rule; else None."""
        return None

    def token_ranges(self, length: int) -> list[slice] | None:
        """The range of real tokens per batch item, if the rule restricts queries and keys to it; else None."""
        return None

    def segments(self, length: int) -> list[slice] | None:
        """The independent pieces of a packed row, if the rule separates one row into such; else None."""
        return None

    def __and__(self, other: Any) -> Any:
        """The mask that allows what both allow."""
        raise NotImplementedError
