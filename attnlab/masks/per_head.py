"""Masks that differ per head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import Tensor

from attnlab.masks.clauses import Clause, Clauses, conjunction, disjunction
from attnlab.masks.mask import Mask


@dataclass(frozen=True, eq=False, repr=False)
class PerHeadMask(Mask):
    """The first ``counts[0]`` heads use ``rules[0]``, the next ``counts[1]`` use ``rules[1]``, and so on."""

    counts: tuple[int, ...]
    rules: tuple[Mask, ...]

    def __post_init__(self) -> None:
        rules, ends = self.rules, accumulate(self.counts)
        self._combine(
            *rules,
            num_heads=sum(self.counts),
            is_relative=all(rule.is_relative for rule in rules),
            includes_diagonal=all(rule.includes_diagonal for rule in rules),  # needed by conjunctions of these
            head_groups=[(slice(e - n, e), rule) for e, n, rule in zip(ends, self.counts, rules, strict=True)],
        )

    def allowed(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        first, *others = [
            rule.allowed(b, h, q, k) & (h >= heads.start) & (h < heads.stop) for heads, rule in self.head_groups or []
        ]
        for other in others:
            first = first | other
        return first

    def clauses(self, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Clauses:
        union: Clauses = []
        for heads, rule in self.head_groups or []:
            chosen = [Clause(rows=(h >= heads.start) & (h < heads.stop))]
            union = disjunction(union, conjunction(rule.clauses(b, h, q, k), chosen))
        return union

    def __repr__(self) -> str:
        return f"per_head({' + '.join(f'{n} * [{rule}]' for n, rule in zip(self.counts, self.rules, strict=True))})"


def per_head(rules: Sequence[Mask]) -> Mask:
    """A mask for each head, in order. Consecutive heads with the same mask are computed together.

    Raises:
        ValueError: for an empty sequence, or a mask that differs per head already.
    """
    if not rules:
        raise ValueError("per_head(rules) needs one mask per head, got none")
    if any(rule.num_heads > 1 for rule in rules):
        raise ValueError("per_head(rules) takes masks of one head each; one of these already differs per head")
    distinct, counts = [rules[0]], [0]
    for rule in rules:
        if rule is not distinct[-1]:
            distinct.append(rule)
            counts.append(0)
        counts[-1] += 1
    return rules[0] if len(distinct) == 1 else PerHeadMask(tuple(counts), tuple(distinct))
