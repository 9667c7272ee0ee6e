"""Each rule against its definition, cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from drawn_masks import KEYS, B, H, matrix
from hypothesis import given
from hypothesis import strategies as st

from attnlab import masks
from attnlab.masks import Mask
from attnlab.models.multihead import MultiAttention

LENGTHS = torch.tensor([2, 5])
IDS = torch.tensor([[0, 0, 1, 1, 1, 2, 0], [4, 4, 4, 4, 9, 9, 9]])
PATTERN = torch.rand(B, H, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5

Cell = Callable[[int, int, int, int], Any]
"""Whether query q may attend to key k in head h of batch item b."""

RULES: list[tuple[Mask, Cell]] = [
    (masks.causal(), lambda b, h, q, k: k <= q),
    (masks.strided(3), lambda b, h, q, k: (q - k) % 3 == 0),
    (masks.global_tokens(2), lambda b, h, q, k: min(q, k) < 2),
    (masks.prefix(3), lambda b, h, q, k: k < 3),
    (masks.prefix(LENGTHS), lambda b, h, q, k: k < LENGTHS[b]),
    (masks.causal() | masks.prefix(3), lambda b, h, q, k: k <= q or k < 3),
    (masks.padding(LENGTHS), lambda b, h, q, k: k < LENGTHS[b]),
    (masks.padding(LENGTHS, mask_queries=True), lambda b, h, q, k: max(q, k) < LENGTHS[b]),
    (masks.padding(LENGTHS, side="left", max_length=KEYS), lambda b, h, q, k: k >= KEYS - LENGTHS[b]),
    (
        masks.padding(LENGTHS, side="left", max_length=KEYS, mask_queries=True),
        lambda b, h, q, k: min(q, k) >= KEYS - LENGTHS[b],
    ),
    (masks.documents(IDS), lambda b, h, q, k: IDS[b, q] == IDS[b, k]),
    (masks.documents(IDS[0]), lambda b, h, q, k: IDS[0, q] == IDS[0, k]),
    (masks.from_cu_seqlens(torch.tensor([0, 2, 2, 7])), lambda b, h, q, k: (q < 2) == (k < 2)),
    (masks.block_summary(3), lambda b, h, q, k: k % 3 == 2),
    (masks.block_summary(3, 2), lambda b, h, q, k: k % 3 > 0),
    (masks.block_local(3), lambda b, h, q, k: q // 3 == k // 3),
    (masks.block_local(2, neighbors=1), lambda b, h, q, k: abs(q // 2 - k // 2) <= 1),
    (masks.block_sparse(2, PATTERN), lambda b, h, q, k: PATTERN[b, h, q // 2, k // 2]),
    (masks.block_sparse(3, PATTERN[0, 0]), lambda b, h, q, k: PATTERN[0, 0, q // 3, k // 3]),
    *[(masks.sliding_window(n), lambda b, h, q, k, n=n: abs(q - k) < n) for n in (1, 2, 3, 7, 11)],
    *[(masks.causal() & masks.sliding_window(n), lambda b, h, q, k, n=n: q - n < k <= q) for n in (1, 3, 11)],
    *[
        (masks.dilated(size, step), lambda b, h, q, k, size=size, step=step: abs(q - k) in range(0, size * step, step))
        for size in (1, 2, 3, 7)
        for step in (1, 2, 3, 11)
    ],
]


@pytest.mark.parametrize(("mask", "cell"), RULES, ids=lambda value: str(value) if isinstance(value, Mask) else "")
def test_every_rule_matches_its_definition(mask: Mask, cell: Cell) -> None:
    for queries in (1, 2, 5, 7):
        every = range(B), range(H), range(KEYS - queries, KEYS), range(KEYS)
        expected = [
            [[[bool(cell(b, h, q, k)) for k in every[3]] for q in every[2]] for h in every[1]] for b in every[0]
        ]
        assert torch.equal(matrix(mask, queries), torch.tensor(expected))


def test_a_position_without_a_document_is_fully_masked() -> None:
    result = masks.documents(torch.zeros(KEYS, dtype=torch.long)).materialize(5, KEYS, offset=5)
    assert result.any(-1).tolist() == [True, True, False, False, False]


def test_block_sparse_with_more_queries_than_keys() -> None:
    """Queries before the first key are in no block: their rows are fully masked, and no other row is."""
    mask = masks.block_sparse(16, torch.eye(13, dtype=torch.bool) | (torch.arange(13) == 5))
    torch.manual_seed(0)
    layer = MultiAttention(6, 3).double()
    x, context = torch.randn(2, 380, 6, dtype=torch.float64), torch.randn(2, 200, 6, dtype=torch.float64)
    out = layer(x, context=context, mask=mask)
    torch.testing.assert_close(out, layer(x, context=context, mask=mask.materialize(380, 200)))
    assert not out[:, :180].any()
    torch.testing.assert_close(out[:, 180:], layer(x[:, 180:], context=context, mask=mask))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31), st.integers(0, 40), st.integers(1, 30))
def test_random_blocks_are_whole_symmetric_and_enumerated_exactly(
    size: int, count: int, seed: int, first: int, queries: int
) -> None:
    length = 72
    rule = masks.random_blocks(size, count, seed)
    seen = rule.materialize(length)
    assert torch.equal(seen, seen.T)
    assert torch.equal(rule.materialize(31), seen[:31, :31]), "links must not depend on the length"
    whole = seen[::size, ::size]
    assert torch.equal(seen, whole.repeat_interleave(size, 0).repeat_interleave(size, 1)[:length, :length])
    drawn = whole.tril(-1).sum(1)
    assert drawn[0] == 0
    assert all(1 <= n <= count for n in drawn[1:].tolist())
    assert not whole.diagonal().any()
    k = torch.arange(first // 2, length)
    asked = seen[first // size * size : -(-(first + queries) // size) * size]
    assert torch.equal(rule.candidate_keys(range(first, first + queries), k), asked.any(0)[first // 2 :])


@pytest.mark.parametrize("name", ["uint8", "int8", "int16", "int32", "uint16", "uint32", "uint64"])
def test_any_integer_dtype(name: str) -> None:
    """Small and unsigned integers would overflow: 300 - 3 is 41 in uint8."""
    lengths, ids, boundaries = torch.tensor([3, 100]), torch.tensor([0, 120, 7, 7, 1, 0, 64]), torch.tensor([0, 3, 120])
    for build, values in (
        (masks.padding, lengths),
        (lambda t: masks.padding(t, mask_queries=True), lengths),
        (lambda t: masks.padding(t, side="left", max_length=300), lengths),
        (masks.prefix, lengths),
        (masks.documents, ids.repeat_interleave(43)),
        (masks.documents, torch.stack([ids, ids.flip(0)]).repeat_interleave(43, 1)),
        (lambda t: masks.random_blocks(4, 2, t), torch.tensor(127)),
        (lambda t: masks.from_cu_seqlens(t, total=300), boundaries),
        (masks.from_attention_mask, (lengths[:, None] > torch.arange(300) % 101).long()),
    ):
        result, expected = build(values.to(getattr(torch, name))), build(values)
        assert torch.equal(result.materialize(300), expected.materialize(300))
        assert repr(result) == repr(expected)
