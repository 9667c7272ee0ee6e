"""Masks: the laws of the operators over random masks, each rule against a loop, and conversions.

Sizes are distinct primes wherever an axis could be swapped: B = 2, H = 3, N_k = 7, N_q up to 5.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnlab import masks
from attnlab.masks import Mask
from attnlab.models.multihead import MultiAttention
from attnlab.models.strided import StridedAttention

B, H, KEYS = 2, 3, 7


def booleans(*shape: int) -> st.SearchStrategy[Tensor]:
    size = int(torch.tensor(shape).prod())
    return st.lists(st.booleans(), min_size=size, max_size=size).map(lambda bits: torch.tensor(bits).view(shape))


def integers(size: int, low: int, high: int) -> st.SearchStrategy[Tensor]:
    return st.lists(st.integers(low, high), min_size=size, max_size=size).map(torch.tensor)


LENGTHS = integers(B, 0, KEYS)
PLAIN = st.one_of(
    st.builds(masks.causal),
    st.integers(1, KEYS + 1).map(masks.sliding_window),
    st.builds(masks.dilated, st.integers(1, KEYS), st.integers(1, 3)),
    st.integers(1, KEYS + 1).map(masks.strided),
    st.integers(1, KEYS + 1).map(masks.global_tokens),
    st.tuples(st.integers(1, 4), st.integers(0, 3)).map(lambda pair: masks.block_summary(sum(pair), pair[0])),
    st.integers(0, KEYS + 1).map(masks.prefix),
    st.integers(1, KEYS + 1).map(masks.block_local),
)
POSITIONAL = st.one_of(
    PLAIN,
    LENGTHS.map(masks.prefix),
    LENGTHS.map(masks.padding),
    LENGTHS.map(lambda lengths: masks.padding(lengths, side="left", max_length=KEYS)),
    integers(KEYS, 0, 2).map(masks.documents),
    integers(B * KEYS, 0, 2).map(lambda ids: masks.documents(ids.view(B, KEYS))),
    booleans(4, 4).map(lambda pattern: masks.block_sparse(2, pattern)),
    booleans(B, H, 3, 3).map(lambda pattern: masks.block_sparse(3, pattern)),
    booleans(B, KEYS).map(masks.from_key_padding_mask),
    st.builds(masks.random_blocks, st.integers(1, 3), st.integers(1, 2), st.integers(0, 99)),
    st.builds(lambda size, around: masks.block_local(size, neighbors=around), st.integers(1, 4), st.integers(0, 2)),
    st.lists(PLAIN, min_size=H, max_size=H).map(masks.per_head),
)
SQUARE = st.one_of(
    POSITIONAL,
    booleans(KEYS, KEYS).map(masks.from_tensor),
    booleans(B, KEYS, KEYS).map(masks.from_tensor),
    booleans(B, H, KEYS, KEYS).map(masks.from_tensor),
)


def combined(leaves: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
    def grow(smaller: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
        pairs = st.tuples(smaller, smaller)
        return st.one_of(pairs.map(lambda p: p[0] & p[1]), pairs.map(lambda p: p[0] | p[1]), smaller.map(lambda m: ~m))

    return st.recursive(leaves, grow, max_leaves=4)


def matrix(mask: Mask, queries: int = KEYS, keys: int = KEYS, offset: int | None = None) -> Tensor:
    """The whole (B, H, N_q, N_k)."""
    return mask.materialize(queries, keys, offset=offset).expand(B, H, queries, keys)


def by_hand(rule: Callable[[int, int], bool], queries: int = KEYS, keys: int = KEYS) -> Tensor:
    """The matrix of a rule over positions, cell by cell; queries are aligned at the end."""
    return torch.tensor([[rule(q + keys - queries, k) for k in range(keys)] for q in range(queries)])


# Operators


@given(combined(SQUARE), combined(SQUARE))
def test_de_morgan(a: Mask, b: Mask) -> None:
    assert torch.equal(matrix(~(a & b)), matrix(~a | ~b))
    assert torch.equal(matrix(~(a | b)), matrix(~a & ~b))


@given(combined(SQUARE), combined(SQUARE))
def test_operators_match_boolean_tensors(a: Mask, b: Mask) -> None:
    assert torch.equal(matrix(a & b), matrix(a) & matrix(b))
    assert torch.equal(matrix(a | b), matrix(a) | matrix(b))
    assert torch.equal(matrix(~a), ~matrix(a))
    assert torch.equal(matrix(~~a), matrix(a))


@given(booleans(KEYS, KEYS))
def test_a_tensor_is_accepted_as_either_operand(tensor: Tensor) -> None:
    rule = masks.causal()
    assert torch.equal(matrix(tensor & rule), matrix(rule & tensor))
    assert torch.equal(matrix(tensor | rule), matrix(rule | tensor))
    assert torch.equal(matrix(rule & tensor)[0, 0], tensor & by_hand(lambda q, k: k <= q))


@given(combined(POSITIONAL), st.integers(1, 5), st.data())
def test_offset_selects_rows(mask: Mask, queries: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, KEYS - queries))
    assert torch.equal(matrix(mask, queries, offset=offset), matrix(mask)[:, :, offset : offset + queries])


@given(combined(POSITIONAL), st.integers(1, 5))
def test_queries_are_aligned_at_the_end(mask: Mask, queries: int) -> None:
    assert torch.equal(matrix(mask, queries), matrix(mask)[:, :, -queries:])


@given(combined(SQUARE))
def test_includes_diagonal(mask: Mask) -> None:
    if mask.includes_diagonal:
        assert matrix(mask).diagonal(dim1=-2, dim2=-1).all()


@given(combined(SQUARE), st.integers(1, KEYS), st.data())
def test_candidate_keys_and_stride_cover_all_allowed_keys(mask: Mask, queries: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, KEYS - queries))
    seen = matrix(mask)[:, :, first : first + queries].flatten(0, 2).any(0)
    assert (mask.candidate_keys(range(first, first + queries), torch.arange(KEYS)) | ~seen).all()
    q, k = matrix(mask).flatten(0, 1).any(0).nonzero(as_tuple=True)
    assert ((q - k) % mask.stride == 0).all()


@given(combined(SQUARE), st.integers(1, KEYS))
def test_tiles_cover_every_row_once_with_all_its_keys(mask: Mask, size: int) -> None:
    bound = mask.bind(KEYS, shape=(B, H))
    rest, rows = matrix(mask).clone(), []
    for tile, keys in bound.tiles(size):
        rows += range(KEYS)[tile]
        index = torch.arange(KEYS)[tile][:, None], torch.arange(KEYS)[keys] if isinstance(keys, slice) else keys
        part = matrix(mask)[:, :, *index]
        assert torch.equal(bound.tile(tile, keys).expand_as(part), part)
        rest[:, :, *index] = False
    assert sorted(rows) == list(range(KEYS))
    assert not rest.any()


@given(st.one_of(POSITIONAL, combined(POSITIONAL)), st.integers(1, 5), st.integers(1, 11), st.integers(-11, 7))
def test_tiles_with_offsets_cover_all_allowed_keys(mask: Mask, size: int, queries: int, offset: int) -> None:
    """Also for rows before the first key or after the last one, as with more queries than keys."""
    bound = mask.bind(queries, KEYS, shape=(B, H), offset=offset)
    rest = bound.tensor().expand(B, H, queries, KEYS).clone()
    for rows, keys in bound.tiles(size):
        index = torch.arange(queries)[rows][:, None], torch.arange(KEYS)[keys] if isinstance(keys, slice) else keys
        part = bound.tensor().expand(B, H, queries, KEYS)[:, :, *index]
        assert torch.equal(bound.tile(rows, keys).expand_as(part), part)
        rest[:, :, *index] = False
    assert not rest.any()


@given(st.integers(2, 5), st.one_of(POSITIONAL, combined(POSITIONAL)), st.integers(1, 3), st.integers(0, 5))
def test_folded_tiles_match_the_matrix(step: int, mask: Mask, size: int, first: int) -> None:
    """Each residue has the tiles of the first one, shifted, for any other conjuncts."""
    mask = masks.strided(step) & mask
    length = KEYS - first
    bound = mask.bind(length, shape=(B, H), first=first)
    assert bound.can_fold
    rest = bound.tensor().expand(B, H, length, length).clone()
    for rows, keys in bound.tiles(size, one_residue=True):
        assert isinstance(keys, slice)
        part = bound.folded_tile(rows, keys).expand(B, mask.stride, H, -1, -1)
        for residue in range(mask.stride):
            r, c = torch.arange(length)[rows] + residue, torch.arange(length)[keys] + residue
            inside = r[:, None] < length, c < length
            assert not part[:, residue, ..., ~inside[1]].any()
            result = part[:, residue][:, :, inside[0][:, 0]][..., inside[1]]
            assert torch.equal(result, rest[:, :, r[r < length][:, None], c[c < length]])
            rest[:, :, r[r < length][:, None], c[c < length]] = False
    assert not rest.any()


@given(st.lists(st.sampled_from([masks.sliding_window(2), masks.strided(3)]), min_size=H, max_size=H), combined(PLAIN))
def test_per_head(rules: list[Mask], rest: Mask) -> None:
    bound = (rest & masks.per_head(rules)).bind(KEYS, shape=(B, H))
    assert torch.equal(bound.tensor().expand(B, H, -1, -1), torch.stack([matrix(rest & r)[:, 0] for r in rules], 1))
    if len(set(rules)) > 1:
        runs = bound.head_groups()
        assert runs is not None
        for heads, group in runs:
            assert torch.equal(
                group.tensor().expand(B, heads.stop - heads.start, -1, -1),
                matrix(rest & rules[heads.start])[:, : heads.stop - heads.start],
            )


@given(combined(PLAIN))
def test_repr_evaluates_to_the_mask(mask: Mask) -> None:
    assert torch.equal(matrix(eval(repr(mask), vars(masks))), matrix(mask))


@given(combined(SQUARE))
def test_to_does_not_change_the_mask(mask: Mask) -> None:
    assert torch.equal(matrix(mask.to("cpu")), matrix(mask))


@given(combined(SQUARE), st.integers(1, 11))
def test_zero_fully_masked_rows(mask: Mask, width: int) -> None:
    out = mask.bind(KEYS, shape=(B, H)).zero_fully_masked_rows(torch.ones(B, KEYS, width))
    seen = matrix(mask).any(-1).any(1)
    assert torch.equal(out, seen.unsqueeze(-1).expand(B, KEYS, width).float())


# Fully masked rows


@given(st.lists(st.one_of(POSITIONAL, combined(POSITIONAL)), min_size=1, max_size=4), st.data())
def test_fully_masked_matches_the_matrix(rules: list[Mask], data: st.DataObject) -> None:
    """Conjunctions over all rules, also of a cache that has dropped its first keys, and with more queries than keys."""
    mask = functools.reduce(operator.and_, rules)
    first = data.draw(st.integers(0, KEYS - 1))
    queries, offset = data.draw(st.integers(1, KEYS)), data.draw(st.integers(-KEYS, KEYS))
    bound = mask.bind(queries, KEYS - first, shape=(B, H), offset=offset, first=first)
    expected = ~matrix(mask, queries, KEYS, first + offset)[..., first:].any(-1).any(1)
    assert torch.equal(bound.fully_masked().expand(B, queries), expected)


PARTS = {
    "causal": masks.causal(),
    "window": masks.sliding_window(5),
    "dilated": masks.dilated(3, 7),
    "every": masks.strided(7),
    "not a window": ~masks.sliding_window(5),
    "prefix": masks.prefix(11),
    "prefix per item": masks.prefix(torch.tensor([3, 0, 11])),
    "blocks": masks.block_local(13, neighbors=1),
    "global tokens": masks.sliding_window(3) | masks.global_tokens(2),
    "summaries": masks.block_summary(11, 2),
    "right padding": masks.padding(torch.tensor([701, 0, 5])),
    "left padding": masks.padding(torch.tensor([701, 0, 5]), side="left", max_length=701),
    "padding of queries": masks.padding(torch.tensor([701, 0, 5]), mask_queries=True),
    "padded keys": masks.from_key_padding_mask(torch.arange(3 * 701).view(3, 701) % 7 < 5),
    "per head": masks.per_head([masks.sliding_window(5), masks.strided(7), ~masks.causal()]),
}
IN_PARTS = {
    "documents": masks.documents(torch.arange(701) // 23),
    "pattern": masks.block_sparse(64, torch.eye(11, dtype=torch.bool)),
    "random blocks": masks.random_blocks(16, 2, 3),
    "not every": ~masks.strided(3),
}


class Largest(TorchDispatchMode):
    """The number of elements of the largest storage that an operation made."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.size = max(self.size, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


@pytest.mark.parametrize("name", [*PARTS, *IN_PARTS])
@pytest.mark.parametrize("padded", ["right padding", "left padding", "padding of queries", "padded keys"])
def test_fully_masked_rows_are_found_without_a_matrix(name: str, padded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.masks.bound.CHUNK", 2**14)
    mask = masks.causal() & (PARTS | IN_PARTS)[name] & PARTS[padded]
    bound, out = mask.bind(701, shape=(3, 3)), torch.ones(3, 701, 2)
    with Largest() as largest:
        result = bound.zero_fully_masked_rows(out)
    assert largest.size < (30_000 if name in PARTS else 100_000), "the matrix has 3 * 701 * 701 elements, 1.5 million"
    expected = matrix_of(mask, 701).any(-1).any(1)
    assert torch.equal(result[..., 0].bool(), expected.expand(3, -1))


def matrix_of(mask: Mask, length: int) -> Tensor:
    return mask.materialize(length).expand(3, 3, length, length)


@pytest.mark.parametrize("fill", [0.4, 0.95])
@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_causal_attention_over_a_padded_batch_materializes_no_matrix(fill: float, queries: bool, train: bool) -> None:
    """Neither for the kernel nor for the fully masked rows; at most what causal attention needs."""
    torch.manual_seed(0)
    layer, x = MultiAttention(6, 3, causal=True).train(train), torch.randn(2, 701, 6).requires_grad_(train)
    mask = masks.padding(torch.tensor([701, round((2 * fill - 1) * 701)]).clamp(min=5), mask_queries=queries)
    with Largest() as largest:
        out = layer(x, mask=mask)
        if train:
            out.sum().backward()
    assert largest.size < 701 * 701 / 4


@pytest.mark.parametrize("padded", ["right padding", "left padding", "padding of queries", "padded keys"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_memory_of_strided_attention_over_a_padded_batch(padded: str, train: bool, is_causal: bool) -> None:
    """Its distant heads use one kernel call for all residues, at a length that is not a multiple of the stride."""
    torch.manual_seed(0)
    layer = StridedAttention(6, 2, stride=23, causal=is_causal).train(train)
    x = torch.randn(3, 701, 6).requires_grad_(train)
    with Largest() as largest:
        out = layer(x, mask=PARTS[padded])
        if train:
            out.sum().backward()
    assert largest.size < 701 * 701 / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_fully_masked_rows_are_found_without_reading_values(name: str) -> None:
    """On the meta device, under make_fx, and in one compiled graph for every length."""
    torch._dynamo.reset()
    mask = masks.causal() & PARTS[name] & PARTS["padding of queries"]
    moved = mask.to("meta")
    assert moved.bind(701, shape=(3, 3), device="meta").fully_masked().shape == (3, 701)

    def blank(out: Tensor) -> Tensor:
        return mask.bind(out.shape[1], shape=(3, 3), device=out.device).zero_fully_masked_rows(out)

    out = torch.ones(3, 701, 2)
    expected = blank(out)
    assert torch.equal(torch.compile(blank, fullgraph=True, backend="eager", dynamic=True)(out), expected)
    assert torch.equal(make_fx(blank)(out)(out), expected)


# Rules


@pytest.mark.parametrize("queries", [1, 2, 5, 7])
def test_causal(queries: int) -> None:
    result = masks.causal().materialize(queries, KEYS)
    assert torch.equal(result, by_hand(lambda q, k: k <= q, queries))
    assert result[-1].all()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("queries", [2, 7])
def test_sliding_window(size: int, queries: int) -> None:
    assert torch.equal(
        masks.sliding_window(size).materialize(queries, KEYS), by_hand(lambda q, k: abs(q - k) < size, queries)
    )
    both = masks.causal() & masks.sliding_window(size)
    assert torch.equal(both.materialize(queries, KEYS), by_hand(lambda q, k: q - size < k <= q, queries))
    assert both.materialize(queries, KEYS).sum(-1).tolist() == [min(size, q + 1) for q in range(KEYS - queries, KEYS)]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("step", [1, 2, 3, 11])
@pytest.mark.parametrize("queries", [2, 7])
def test_dilated(size: int, step: int, queries: int) -> None:
    steps = {step * n for n in range(size)}
    result = masks.dilated(size, step)
    assert torch.equal(result.materialize(queries, KEYS), by_hand(lambda q, k: abs(q - k) in steps, queries))
    back, ahead = result.band
    assert back == ahead == max(steps)
    both = masks.causal() & result
    assert torch.equal(both.materialize(queries, KEYS), by_hand(lambda q, k: q - k in steps, queries))
    if step == 1:
        assert torch.equal(matrix(result), matrix(masks.sliding_window(size)))


def test_dilated_with_dropped_keys_counts_from_the_first_position() -> None:
    rule = masks.causal() & masks.dilated(3, 2)
    whole = rule.materialize(11)
    bound = rule.bind(2, 6, first=5)  # the cache has dropped 5 keys; 6 are left, the last 2 of which are queries too
    assert torch.equal(bound.tensor()[0, 0], whole[9:, 5:])
    assert torch.equal(bound.tile(slice(1, 2), slice(2, 6))[0, 0], whole[10:, 7:])


def test_prefix() -> None:
    assert torch.equal(masks.prefix(3).materialize(5, KEYS), by_hand(lambda q, k: k < 3, 1).squeeze(0).expand(1, -1))
    model = masks.causal() | masks.prefix(3)
    assert torch.equal(model.materialize(KEYS), by_hand(lambda q, k: k <= q or k < 3))
    each = matrix(masks.prefix(torch.tensor([2, 5])))
    assert torch.equal(each[0], matrix(masks.prefix(2))[0])
    assert torch.equal(each[1], matrix(masks.prefix(5))[0])


def test_padding_on_either_side() -> None:
    right = matrix(masks.padding(torch.tensor([2, 5])))
    left = matrix(masks.padding(torch.tensor([2, 5]), side="left", max_length=KEYS))
    for item, length in enumerate([2, 5]):
        assert torch.equal(right[item, 0], by_hand(lambda q, k, n=length: k < n))
        assert torch.equal(left[item, 0], by_hand(lambda q, k, n=length: k >= KEYS - n))
    assert torch.equal(left, right.flip(-1))


def test_documents() -> None:
    ids = torch.tensor([[0, 0, 1, 1, 1, 2, 0], [4, 4, 4, 4, 9, 9, 9]])
    result = matrix(masks.documents(ids))
    for item in range(B):
        assert torch.equal(result[item, 0], by_hand(lambda q, k, i=item: bool(ids[i, q] == ids[i, k])))
    assert torch.equal(matrix(masks.documents(ids[0])), result[:1].expand(B, -1, -1, -1))


def test_a_position_without_a_document_is_fully_masked() -> None:
    result = masks.documents(torch.zeros(KEYS, dtype=torch.long)).materialize(5, KEYS, offset=5)
    assert result.any(-1).tolist() == [True, True, False, False, False]


def test_block_local_and_block_sparse() -> None:
    assert torch.equal(masks.block_local(3).materialize(KEYS), by_hand(lambda q, k: q // 3 == k // 3))
    pattern = torch.tensor([[True, False, False], [True, True, False], [False, True, True]])
    assert torch.equal(
        masks.block_sparse(3, pattern).materialize(KEYS), by_hand(lambda q, k: bool(pattern[q // 3, k // 3]))
    )


def test_block_sparse_per_item_and_head() -> None:
    pattern = torch.rand(B, H, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.5
    result = matrix(masks.block_sparse(2, pattern))
    for item in range(B):
        for head in range(H):
            blocks = pattern[item, head]
            assert torch.equal(result[item, head], by_hand(lambda q, k, blocks=blocks: bool(blocks[q // 2, k // 2])))


def test_block_sparse_with_more_queries_than_keys() -> None:
    """Queries before the first key are in no block: their rows are fully masked, and no other row is."""
    pattern = torch.eye(13, dtype=torch.bool) | (torch.arange(13) == 5)
    mask = masks.block_sparse(16, pattern)
    torch.manual_seed(0)
    layer = MultiAttention(6, 3).double()
    x, context = torch.randn(2, 380, 6, dtype=torch.float64), torch.randn(2, 200, 6, dtype=torch.float64)
    out = layer(x, context=context, mask=mask)
    torch.testing.assert_close(out, layer(x, context=context, mask=mask.materialize(380, 200)))
    assert not out[:, :180].any()
    torch.testing.assert_close(out[:, 180:], layer(x[:, 180:], context=context, mask=mask))


def test_block_local_with_neighbors() -> None:
    result = masks.block_local(2, neighbors=1)
    assert torch.equal(result.materialize(KEYS), by_hand(lambda q, k: abs(q // 2 - k // 2) <= 1))
    assert result.band == (3, 3)
    assert torch.equal(masks.block_local(3, neighbors=0).materialize(KEYS), masks.block_local(3).materialize(KEYS))


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
    blocks = range(first // size, -(-(first + queries) // size))
    asked = seen[blocks.start * size : blocks.stop * size]
    assert torch.equal(rule.candidate_keys(range(first, first + queries), k), asked.any(0)[first // 2 :])


def test_three_axes_are_batch_queries_keys() -> None:
    tensor = torch.rand(B, 5, KEYS, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(matrix(masks.from_tensor(tensor), 5), tensor.unsqueeze(1).expand(B, H, 5, KEYS))


INTEGERS = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@given(integers(B, 0, 100), integers(B * 7, 0, 120), st.integers(0, 127), st.data())
def test_any_integer_dtype(dtype: torch.dtype, lengths: Tensor, ids: Tensor, seed: int, data: st.DataObject) -> None:
    """Small and unsigned integers would overflow: 300 - 3 is 41 in uint8."""
    boundaries = torch.cat([torch.zeros(1).long(), lengths]).cumsum(0).clamp(max=120)
    build, values = data.draw(
        st.sampled_from(
            [
                (masks.padding, lengths),
                (lambda t: masks.padding(t, mask_queries=True), lengths),
                (lambda t: masks.padding(t, side="left", max_length=300), lengths),
                (masks.prefix, lengths),
                (masks.documents, ids.repeat_interleave(43, 0)),
                (masks.documents, ids.view(B, 7).repeat_interleave(43, 1)),
                (lambda t: masks.random_blocks(4, 2, t), torch.tensor(seed)),
                (lambda t: masks.from_cu_seqlens(t, total=300), boundaries),
                (masks.from_attention_mask, lengths[:, None] > torch.arange(300) % 101),
            ]
        )
    )
    result, expected = build(values.to(dtype)), build(values.long())
    assert torch.equal(result.materialize(300), expected.materialize(300))
    assert repr(result) == repr(expected)


def test_left_padding_of_uint8_lengths_keeps_three_of_300_keys() -> None:
    mask = masks.padding(torch.tensor([3, 5], dtype=torch.uint8), side="left", max_length=300)
    assert mask.materialize(300).sum(-1).flatten().tolist() == [3, 5]


# Bound masks


def test_is_causal_only_for_the_plain_causal_mask() -> None:
    assert masks.causal().bind(5).is_causal
    assert not masks.causal().bind(5, KEYS).is_causal
    assert not masks.causal().bind(5, 5, offset=1).is_causal
    assert not (masks.causal() & masks.sliding_window(3)).bind(5).is_causal
    assert not (~masks.causal()).bind(5).is_causal


def test_the_matrix_is_made_once_and_has_four_axes() -> None:
    bound = masks.sliding_window(2).bind(5, KEYS, shape=(B, H))
    assert bound.tensor().shape == (1, 1, 5, KEYS)
    assert bound.tensor() is bound.tensor()


@pytest.mark.parametrize(
    "rule", [masks.block_summary(3), masks.prefix(2), masks.sliding_window(2), masks.strided(5)], ids=str
)
def test_zero_fully_masked_rows_with_padding(rule: Mask) -> None:
    real = torch.tensor([1, 301])
    mask = rule & masks.padding(real)
    out = mask.bind(307, shape=(2, 1)).zero_fully_masked_rows(torch.ones(2, 307, 1))[..., 0]
    assert torch.equal(out, mask.materialize(307).expand(2, 1, 307, 307)[:, 0].any(-1).float())


@pytest.mark.parametrize("items", [1, 2])
def test_a_conjunction_of_masks_per_head_can_mask_a_row_fully(items: int) -> None:
    """Each allows every query its own position in some head, but not in the same one."""
    far = ~masks.sliding_window(99)
    mask = masks.per_head([masks.causal(), far]) & masks.per_head([far, masks.causal()])
    mask = mask if items == 1 else mask & masks.padding(torch.tensor([127, 101]))
    torch.manual_seed(0)
    layer = MultiAttention(6, 2).double()
    nn.init.ones_(layer.output.bias)
    out = layer(torch.randn(2, 127, 6, dtype=torch.float64), mask=mask)
    assert torch.equal(out.any(-1), mask.materialize(127).any(-1).any(1).expand(2, -1))
    assert not out[:, :99].any()
    assert out[:, 99:].all()


def test_zero_fully_masked_rows_after_the_last_key() -> None:
    # A window includes the diagonal, but a query after the last key has none.
    out = masks.sliding_window(2).bind(3, KEYS, offset=KEYS).zero_fully_masked_rows(torch.ones(1, 3, 2))
    assert out[0, :, 0].tolist() == [1.0, 0.0, 0.0]


# Text


def test_draw() -> None:
    assert masks.causal().draw(3) == "■ · ·\n■ ■ ·\n■ ■ ■"
    assert masks.causal().draw(2, 3) == "■ ■ ·\n■ ■ ■"
    assert masks.padding(torch.tensor([2, 1])).draw(2, 3) == "■ ■ ·\n■ ■ ·"
    assert masks.dilated(2, 2).draw(4) == "■ · ■ ·\n· ■ · ■\n■ · ■ ·\n· ■ · ■"
    assert (masks.causal() & masks.dilated(2, 3)).draw(1, 4) == "■ · · ■"


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        (
            masks.causal() & masks.sliding_window(128) & masks.padding(torch.tensor([3, 5])),
            "causal() & sliding_window(128) & padding([3, 5])",
        ),
        ((masks.causal() | masks.prefix(3)) & masks.block_local(2), "(causal() | prefix(3)) & block_local(2)"),
        (
            masks.causal() | masks.sliding_window(2) & masks.block_local(2),
            "causal() | sliding_window(2) & block_local(2)",
        ),
        (~(masks.causal() & masks.sliding_window(2)), "~(causal() & sliding_window(2))"),
        (~masks.causal(), "~causal()"),
        (masks.causal() & masks.dilated(3, 2), "causal() & sliding_window(5) & strided(2)"),
        (masks.prefix(torch.tensor([2, 3])), "prefix([2, 3])"),
        (masks.padding(torch.tensor([3]), side="left", max_length=7), "padding([3], side='left')"),
        (masks.documents(torch.zeros(2, 11, dtype=torch.long)), "documents(<2x11>)"),
        (masks.block_sparse(2, torch.ones(2, 2, dtype=torch.bool)), "block_sparse(2, [[True, True], [True, True]])"),
        (masks.from_tensor(torch.ones(5, 7, dtype=torch.bool)), "from_tensor(<5x7>)"),
        (masks.from_key_padding_mask(torch.ones(1, 2, dtype=torch.bool)), "keys([[False, False]])"),
    ],
)
def test_repr(mask: Mask, text: str) -> None:
    assert repr(mask) == text


# Conversions


@given(booleans(B, KEYS))
def test_key_padding_mask_round_trip(theirs: Tensor) -> None:
    mask = masks.from_key_padding_mask(theirs)
    assert torch.equal(masks.to_key_padding_mask(mask, 5, KEYS), theirs)
    assert torch.equal(matrix(mask)[:, 0, 0], ~theirs)


@given(booleans(B, KEYS))
def test_attention_mask_round_trip(real: Tensor) -> None:
    mask = masks.from_attention_mask(real.long())
    assert torch.equal(masks.to_attention_mask(mask, 5, KEYS), real.long())
    assert torch.equal(matrix(mask)[:, 0, 0], real)


@given(booleans(5, KEYS), booleans(B * H, 5, KEYS))
def test_attn_mask_round_trip(one: Tensor, each: Tensor) -> None:
    assert torch.equal(masks.to_attn_mask(masks.from_attn_mask(one), 5, KEYS), one)
    mask = masks.from_attn_mask(each, num_heads=H)
    assert torch.equal(masks.to_attn_mask(mask, 5, KEYS, num_heads=H), each)
    assert torch.equal(matrix(mask, 5), ~each.view(B, H, 5, KEYS))


@given(booleans(5, KEYS))
def test_attn_mask_of_zero_and_minus_infinity(forbidden: Tensor) -> None:
    theirs = torch.zeros(5, KEYS).masked_fill(forbidden, -torch.inf)
    assert torch.equal(masks.to_attn_mask(masks.from_attn_mask(theirs), 5, KEYS), forbidden)


def test_a_materialized_mask_per_head_has_four_axes() -> None:
    """With three, (heads, queries, keys) would be read as (batch, queries, keys) wherever B = H."""
    rules = [masks.causal(), masks.block_summary(3), masks.prefix(2)]
    mask = masks.per_head(rules)
    for rule in (mask, ~mask, mask & masks.sliding_window(5), mask | masks.prefix(1)):
        assert rule.materialize(5, KEYS).shape == (1, H, 5, KEYS)
    assert (mask & masks.padding(torch.tensor([2, 5]))).materialize(5, KEYS).shape == (B, H, 5, KEYS)
    torch.manual_seed(0)
    layer, x = MultiAttention(6, H).double(), torch.randn(H, KEYS, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x, mask=mask.materialize(KEYS)), layer(x, mask=mask))


def test_to_attn_mask_of_a_mask_per_head(torch_layer: nn.MultiheadAttention) -> None:
    layer = MultiAttention.from_torch(torch_layer)
    x = torch.randn(B, KEYS, 5 * H, dtype=torch.float64)
    mask = masks.per_head([masks.causal(), masks.sliding_window(3), masks.prefix(2)])
    theirs, _ = torch_layer(x, x, x, attn_mask=masks.to_attn_mask(mask, KEYS, num_heads=H, batch_size=B))
    torch.testing.assert_close(layer(x, mask=mask), theirs)
    same = masks.per_head([masks.prefix(3), masks.prefix(3) & masks.prefix(5)])
    assert torch.equal(masks.to_attention_mask(same, KEYS), torch.tensor([[1, 1, 1, 0, 0, 0, 0]]))


def test_to_attn_mask_expands_over_heads() -> None:
    result = masks.to_attn_mask(masks.padding(torch.tensor([2, 5])), 3, KEYS, num_heads=H)
    assert result.shape == (B * H, 3, KEYS)
    assert result[:H, :, 2:].all()
    assert not result[H:, :, :5].any()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_cu_seqlens_round_trip(lengths: list[int]) -> None:
    boundaries = torch.tensor([0, *lengths]).cumsum(0).int()
    mask = masks.from_cu_seqlens(boundaries)
    assert torch.equal(masks.to_cu_seqlens(mask), boundaries)
    total = sum(lengths)
    assert mask.materialize(total).sum() == sum(n * n for n in lengths)


def test_an_empty_sequence_among_cu_seqlens_is_fully_masked() -> None:
    mask = masks.from_cu_seqlens(torch.tensor([0, 2, 2, 5]))
    assert torch.equal(mask.materialize(5), by_hand(lambda q, k: (q < 2) == (k < 2), 5, 5))


@pytest.fixture
def torch_layer() -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(5 * H, H, batch_first=True, dtype=torch.float64)


def test_the_polarity_is_that_of_multihead_attention(torch_layer: nn.MultiheadAttention) -> None:
    """The output of `nn.MultiheadAttention` with its masks matches ours with the converted masks."""
    layer = MultiAttention.from_torch(torch_layer)
    x = torch.randn(B, KEYS, 5 * H, dtype=torch.float64)
    ignored = torch.zeros(B, KEYS, dtype=torch.bool)
    ignored[0, 3:], ignored[1, :2] = True, True
    hidden = torch.rand(B * H, KEYS, KEYS) > 0.6
    hidden[:, :, 2:4] = False  # no fully masked row, which nn.MultiheadAttention makes NaN
    ignored[:, 2] = False

    theirs, their_map = torch_layer(
        x, x, x, key_padding_mask=ignored, attn_mask=hidden, average_attn_weights=False, need_weights=True
    )
    mask = masks.from_key_padding_mask(ignored) & masks.from_attn_mask(hidden, num_heads=H)
    torch.testing.assert_close(layer(x, mask=mask), theirs)
    torch.testing.assert_close(layer.attention_weights(x, mask=mask), their_map)


def test_converted_masks_match_multihead_attention(torch_layer: nn.MultiheadAttention) -> None:
    layer = MultiAttention.from_torch(torch_layer)
    x = torch.randn(B, KEYS, 5 * H, dtype=torch.float64)
    lengths, rule = masks.padding(torch.tensor([3, 7])), masks.causal() & masks.sliding_window(3) | masks.prefix(1)
    theirs, _ = torch_layer(
        x,
        x,
        x,
        key_padding_mask=masks.to_key_padding_mask(lengths, KEYS),
        attn_mask=masks.to_attn_mask(rule, KEYS),
    )
    torch.testing.assert_close(layer(x, mask=lengths & rule), theirs)


# Errors


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: masks.sliding_window(0), ValueError, "at least 1, got 0"),
    (lambda: masks.sliding_window(2.0), ValueError, "integer of at least 1, got 2.0"),
    (lambda: masks.sliding_window(True), ValueError, "integer of at least 1, got True"),
    (
        lambda: masks.block_local(2, neighbors=0.0),
        ValueError,
        "block_local(neighbors=) must be an integer of at least 0",
    ),
    (
        lambda: masks.block_local(2, neighbors=-1),
        ValueError,
        "block_local(neighbors=) must be an integer of at least 0",
    ),
    (
        lambda: masks.random_blocks(2, 0, 1),
        ValueError,
        "random_blocks(count) must be an integer of at least 1, got 0",
    ),
    (lambda: masks.random_blocks(2, 1, 0.5), ValueError, "random_blocks(seed) must be an integer"),
    (lambda: masks.random_blocks(2, 1, True), ValueError, "random_blocks(seed) must be an integer"),
    (lambda: masks.random_blocks(2, 1, torch.tensor([1, 2])), ValueError, "of shape (), got torch.int64 of shape (2,)"),
    (lambda: masks.block_summary(2, 3), ValueError, "count (3) must be at most size (2)"),
    (lambda: masks.per_head([]), ValueError, "needs one mask per head, got none"),
    (
        lambda: masks.per_head([masks.per_head([masks.causal(), masks.sliding_window(2)])]),
        ValueError,
        "already differs per head",
    ),
    (lambda: masks.dilated(0, 2), ValueError, "dilated(size) must be an integer of at least 1, got 0"),
    (lambda: masks.dilated(2, 0), ValueError, "dilated(dilation) must be an integer of at least 1, got 0"),
    (lambda: masks.dilated(2, 1.5), ValueError, "dilated(dilation) must be an integer of at least 1, got 1.5"),
    (lambda: masks.block_local(-1), ValueError, "at least 1, got -1"),
    (lambda: masks.block_sparse(2, torch.ones(2, 2)), ValueError, "Boolean tensor (query blocks, key blocks)"),
    (lambda: masks.block_sparse(2, ones(2, 2, 2)), ValueError, "got torch.bool of shape (2, 2, 2)"),
    (lambda: masks.block_sparse(2, [[True]]), TypeError, "torch.tensor"),
    (
        lambda: masks.block_sparse(3, ones(2, 2)).materialize(7),
        ValueError,
        "2 x 2, too small for 7 keys, which are 3 blocks",
    ),
    (lambda: masks.prefix(-1), ValueError, "at least 0, got -1"),
    (lambda: masks.prefix(2.5), ValueError, "integer of at least 0"),
    (lambda: masks.prefix(True), ValueError, "integer of at least 0"),
    (lambda: masks.prefix(torch.ones(2)), ValueError, "integers of shape (batch,), got torch.float32"),
    (
        lambda: masks.padding([2, 3]),
        TypeError,
        "padding(lengths) must be a tensor, got list; make one with torch.tensor",
    ),
    (lambda: masks.padding(torch.ones(2, 2, dtype=torch.long)), ValueError, "of shape (2, 2)"),
    (lambda: masks.padding(ones(2)), ValueError, "integers of shape (batch,), got torch.bool"),
    (lambda: masks.padding(torch.tensor([1]), side="top"), ValueError, "'right' or 'left', not 'top'"),
    (lambda: masks.padding(torch.tensor([1]), side="left"), ValueError, "needs max_length=, the padded length"),
    (
        lambda: masks.padding(torch.tensor([9]), side="left", max_length=7),
        ValueError,
        "9 tokens, more than max_length=7",
    ),
    (lambda: masks.padding(torch.tensor([9]), max_length=7), ValueError, "9 tokens, more than max_length=7"),
    (lambda: masks.documents(torch.ones(7)), ValueError, "integers of shape (length,) or (batch, length)"),
    (lambda: masks.documents(ones(7)), ValueError, "got torch.bool"),
    (lambda: masks.documents([0, 1]), TypeError, "torch.tensor"),
    (lambda: masks.documents(torch.tensor([0, 0, 1])).materialize(5), ValueError, "has 3 positions, but there are 5"),
    (lambda: masks.from_tensor(torch.ones(5, 7)), TypeError, "give them as attn_bias="),
    (lambda: masks.from_tensor(torch.ones(5, 7, dtype=torch.long)), TypeError, "from_attention_mask"),
    (lambda: masks.from_tensor(ones(7)), ValueError, "not (7,)"),
    (lambda: masks.from_tensor([[True]]), TypeError, "torch.tensor"),
    (
        lambda: masks.from_tensor(ones(5, 7)).materialize(7),
        ValueError,
        "use from_attention_mask where True means a real token, and from_key_padding_mask where True means a token to",
    ),
    (lambda: bool(masks.causal()), TypeError, "combine masks with & (both allow), | (either allows) and ~ (not)"),
    (lambda: masks.causal() and masks.sliding_window(3), TypeError, "causal() is neither true nor false"),
    (lambda: not masks.per_head([masks.causal(), masks.sliding_window(2)]), TypeError, "neither true nor false"),
    (
        lambda: masks.from_tensor(ones(3, 7, 7)).bind(7, shape=(2, 3)),
        ValueError,
        "a mask per head needs four, (1, heads, queries, keys)",
    ),
    (lambda: masks.from_tensor(ones(2, 7)).materialize(7), ValueError, "2 x 7 (queries x keys)"),
    (lambda: masks.as_mask("causal"), TypeError, "not str"),
    (lambda: masks.causal() & 3, TypeError, "not int"),
    (lambda: masks.causal() | torch.ones(5, 5), TypeError, "give them as attn_bias="),
    (lambda: masks.from_key_padding_mask(torch.ones(2, 7)), TypeError, "Boolean of shape (batch, keys)"),
    (lambda: masks.from_key_padding_mask(ones(2, 3)).materialize(5), ValueError, "(2, 3), (batch, keys), but there"),
    (lambda: masks.from_key_padding_mask([[True]]), TypeError, "torch.tensor"),
    (lambda: masks.to_key_padding_mask(masks.causal(), 5), ValueError, "use to_attn_mask"),
    (lambda: masks.to_attention_mask(masks.sliding_window(2), 5), ValueError, "cannot be given as attention_mask"),
    (lambda: masks.from_attn_mask(torch.full((5, 5), 0.5)), TypeError, "pass it as attn_bias="),
    (lambda: masks.from_attn_mask(torch.ones(5, 5, dtype=torch.long)), TypeError, "Boolean or float"),
    (lambda: masks.from_attn_mask(ones(5)), TypeError, "of shape (5,)"),
    (lambda: masks.from_attn_mask(ones(6, 5, 5)), ValueError, "needs num_heads="),
    (lambda: masks.from_attn_mask(ones(6, 5, 5), num_heads=4), ValueError, "a divisor"),
    (lambda: masks.to_attn_mask(masks.from_tensor(ones(2, 3, 5, 5)), 5), ValueError, "needs num_heads=3, not 1"),
    (lambda: masks.from_attention_mask(torch.tensor([[2, 0]])), TypeError, "1 (real) or 0 (padding)"),
    (lambda: masks.from_attention_mask(torch.tensor([1, 0])), TypeError, "(batch, keys)"),
    (lambda: masks.from_cu_seqlens(torch.tensor([1, 2])), ValueError, "must start at 0 and must not decrease"),
    (lambda: masks.from_cu_seqlens(torch.tensor([0, 5, 3])), ValueError, "must not decrease"),
    (lambda: masks.from_cu_seqlens(torch.tensor([0])), ValueError, "must start at 0"),
    (lambda: masks.from_cu_seqlens(torch.tensor([0.0, 2.5])), ValueError, "got torch.float32 of shape (2,)"),
    (lambda: masks.from_cu_seqlens(torch.tensor([0, 5]), total=3), ValueError, "ends at 5, more than total=3"),
    (lambda: masks.from_cu_seqlens(torch.zeros(2, device="meta").int()), ValueError, "give total="),
    (lambda: masks.padding(torch.tensor([2, -1])), ValueError, "at least 0, got -1"),
    (lambda: masks.prefix(torch.tensor([2, -1])), ValueError, "at least 0, got -1"),
    (lambda: masks.padding(torch.tensor([2, 8])).materialize(7), ValueError, "counts 8 tokens in one sequence"),
    (lambda: (~masks.padding(torch.tensor([8]))).materialize(7), ValueError, "there are only 7 keys"),
    (
        lambda: masks.to_attn_mask(masks.per_head([masks.causal(), masks.sliding_window(2)]), 5),
        ValueError,
        "needs num_heads=2, not 1",
    ),
    (
        lambda: masks.to_attn_mask(masks.padding(torch.tensor([2, 5])), 5, batch_size=3),
        ValueError,
        "needs batch_size=2, not 3",
    ),
    (lambda: masks.to_cu_seqlens(masks.causal()), ValueError, "only documents(ids)"),
    (lambda: masks.to_cu_seqlens(masks.documents(torch.tensor([0, 1, 0]))), ValueError, "interrupted"),
    (
        lambda: masks.to_cu_seqlens(masks.documents(torch.zeros(2, 3, dtype=torch.long))),
        ValueError,
        "over one row",
    ),
    (
        lambda: masks.from_tensor(ones(5, 3, 7, 7)).bind(7, shape=(B, H)).tensor(),
        ValueError,
        "(5, 3, 7, 7), which does not fit (batch, heads, queries, keys) = (2, 3, 7, 7)",
    ),
    (
        lambda: masks.padding(torch.zeros(2, dtype=torch.long, device="meta")).materialize(3),
        ValueError,
        "is on meta, the tokens are on cpu; move it with mask.to(...)",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS, ids=[str(i) for i in range(len(ERRORS))])
def test_errors(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_old_names_are_accepted_with_a_warning() -> None:
    lengths = torch.tensor([2, 5])
    for call, expected in (
        (lambda: masks.window(3), masks.sliding_window(3)),
        (lambda: masks.every(2), masks.strided(2)),
        (lambda: masks.summaries(3), masks.block_summary(3)),
        (lambda: masks.by_head([masks.causal()]), masks.causal()),
        (lambda: masks.blocks(2, around=1), masks.block_local(2, neighbors=1)),
        (lambda: masks.blocks(4, ones(2, 2)), masks.block_sparse(4, ones(2, 2))),
        (lambda: masks.padding(lengths, total=7, queries=True), masks.padding(lengths, mask_queries=True)),
    ):
        with pytest.warns(FutureWarning, match="renamed to|use padding"):
            mask = call()
        assert repr(mask) == repr(expected)
