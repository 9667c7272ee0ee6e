"""The laws of masks: operators, properties, tiles and text, over random masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from drawn_masks import KEYS, MATRICES, PLAIN, POSITIONAL, SQUARE, B, H, combined, matrix
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnlab import masks
from attnlab.masks import Mask


@given(combined(SQUARE), combined(SQUARE), MATRICES)
def test_operators_match_boolean_tensors(a: Mask, b: Mask, tensor: Tensor) -> None:
    assert torch.equal(matrix(a & b), matrix(a) & matrix(b))
    assert torch.equal(matrix(a | b), matrix(a) | matrix(b))
    assert torch.equal(matrix(~a), ~matrix(a))
    whole = matrix(masks.from_tensor(tensor))
    assert torch.equal(whole, (tensor.unsqueeze(1) if tensor.dim() == 3 else tensor).expand(B, H, KEYS, KEYS))
    for both, either in ((a & tensor, a | tensor), (tensor & a, tensor | a)):
        assert torch.equal(matrix(both), matrix(a) & whole)
        assert torch.equal(matrix(either), matrix(a) | whole)


@given(combined(POSITIONAL), st.integers(1, 5), st.none() | st.integers(0, KEYS - 1))
def test_offset_selects_rows(mask: Mask, queries: int, offset: int | None) -> None:
    """By default, queries are aligned with the keys at the end."""
    first = KEYS - queries if offset is None else min(offset, KEYS - queries)
    rows = matrix(mask, queries, offset if offset is None else first)
    assert torch.equal(rows, matrix(mask)[:, :, first : first + queries])


@given(combined(SQUARE), st.integers(1, KEYS), st.data())
def test_properties_hold(mask: Mask, queries: int, data: st.DataObject) -> None:
    whole = matrix(mask)
    assert torch.equal(matrix(mask.to("cpu")), whole)
    if mask.includes_diagonal:
        assert whole.diagonal(dim1=-2, dim2=-1).all()
    q, k = whole.flatten(0, 1).any(0).nonzero(as_tuple=True)
    assert ((q - k) % mask.stride == 0).all()
    first = data.draw(st.integers(0, KEYS - queries))
    seen = whole[:, :, first : first + queries].flatten(0, 2).any(0)
    assert (mask.candidate_keys(range(first, first + queries), torch.arange(KEYS)) | ~seen).all()
    out = mask.bind(KEYS, shape=(B, H)).zero_fully_masked_rows(torch.ones(B, KEYS, queries))
    assert torch.equal(out, whole.any(-1).any(1).unsqueeze(-1).expand_as(out).float())


@pytest.mark.parametrize(
    ("mask", "band"),
    [
        (masks.dilated(3, 2), (4, 4)),
        (masks.block_local(2, neighbors=1), (3, 3)),
        (masks.causal() & masks.sliding_window(3), (2, 0)),
        (masks.causal() | masks.sliding_window(3), (None, 2)),
        (~masks.causal(), (None, None)),
    ],
    ids=str,
)
def test_band(mask: Mask, band: tuple[int | None, int | None]) -> None:
    assert mask.band == band


SIZES = st.tuples(st.just(KEYS), st.just(0), combined(SQUARE)) | st.tuples(
    st.integers(1, 11), st.integers(-11, 7), combined(POSITIONAL)
)


@given(SIZES, st.integers(1, KEYS))
def test_tiles_cover_every_row_once_with_all_its_keys(sizes: tuple[int, int, Mask], size: int) -> None:
    """Also for rows before the first key or after the last one, as with more queries than keys."""
    queries, offset, mask = sizes
    whole = mask.bind(queries, KEYS, shape=(B, H), offset=offset).tensor().expand(B, H, queries, KEYS)
    bound, rest, covered = mask.bind(queries, KEYS, shape=(B, H), offset=offset), whole.clone(), []
    for rows, keys in bound.tiles(size):
        covered += range(queries)[rows]
        index = torch.arange(queries)[rows][:, None], torch.arange(KEYS)[keys] if isinstance(keys, slice) else keys
        part = whole[:, :, *index]
        assert torch.equal(bound.tile(rows, keys).expand_as(part), part)
        rest[:, :, *index] = False
    assert sorted(covered) == list(range(queries))
    assert not rest.any()


@given(st.integers(2, 5), st.one_of(POSITIONAL, combined(POSITIONAL)), st.integers(1, 3), st.integers(0, 5))
def test_folded_tiles_match_the_matrix(step: int, mask: Mask, size: int, first: int) -> None:
    """Each residue has the tiles of the first one, shifted, for any other conjuncts."""
    mask, length = masks.strided(step) & mask, KEYS - first
    bound = mask.bind(length, shape=(B, H), first=first)
    assert bound.can_fold
    rest = bound.tensor().expand(B, H, length, length).clone()
    for rows, keys in bound.tiles(size, one_residue=True):
        assert isinstance(keys, slice)
        part = bound.folded_tile(rows, keys).expand(B, mask.stride, H, -1, -1)
        for residue in range(mask.stride):
            r, c = torch.arange(length)[rows] + residue, torch.arange(length)[keys] + residue
            row_exists, key_exists = r < length, c < length
            assert not part[:, residue, ..., ~key_exists].any()
            result = part[:, residue][:, :, row_exists][..., key_exists]
            index = r[row_exists][:, None], c[key_exists]
            assert torch.equal(result, rest[:, :, *index])
            rest[:, :, *index] = False
    assert not rest.any()


@given(st.lists(st.sampled_from([masks.sliding_window(2), masks.strided(3)]), min_size=H, max_size=H), combined(PLAIN))
def test_per_head(rules: list[Mask], rest: Mask) -> None:
    bound = (rest & masks.per_head(rules)).bind(KEYS, shape=(B, H))
    whole = torch.stack([matrix(rest & rule)[:, 0] for rule in rules], 1)
    assert torch.equal(bound.tensor().expand_as(whole), whole)
    groups = bound.head_groups()
    assert (groups is None) == (len(set(rules)) == 1)
    for heads, group in groups or []:
        assert torch.equal(group.tensor().expand_as(whole[:, heads]), whole[:, heads])


def test_a_materialized_mask_per_head_has_four_axes() -> None:
    """With three, (heads, queries, keys) would be read as (batch, queries, keys) wherever B = H."""
    mask = masks.per_head([masks.causal(), masks.block_summary(3), masks.prefix(2)])
    for rule in (mask, ~mask, mask & masks.sliding_window(5), mask | masks.prefix(1)):
        assert rule.materialize(5, KEYS).shape == (1, H, 5, KEYS)
    assert (mask & masks.padding(torch.tensor([2, 5]))).materialize(5, KEYS).shape == (B, H, 5, KEYS)


def test_is_causal_only_for_the_plain_causal_mask() -> None:
    causal = masks.causal()
    assert causal.bind(5).is_causal
    others = causal.bind(5, KEYS), causal.bind(5, offset=1), (causal & masks.strided(3)).bind(5), (~causal).bind(5)
    assert not any(bound.is_causal for bound in others)


def test_the_matrix_is_made_once_and_has_four_axes() -> None:
    bound = masks.sliding_window(2).bind(5, KEYS, shape=(B, H))
    assert bound.tensor().shape == (1, 1, 5, KEYS)
    assert bound.tensor() is bound.tensor()


def test_dropped_keys_keep_the_positions_of_the_others() -> None:
    rule = masks.causal() & masks.dilated(3, 2)
    whole = rule.materialize(11)
    bound = rule.bind(2, 6, first=5)  # the cache has dropped 5 keys; 6 are left, the last 2 of which are queries too
    assert torch.equal(bound.tile(slice(1, 2), slice(2, 6))[0, 0], whole[10:, 7:])
    assert torch.equal(bound.tensor()[0, 0], whole[9:, 5:])


# Text


@given(combined(PLAIN))
def test_repr_evaluates_to_the_mask(mask: Mask) -> None:
    assert torch.equal(matrix(eval(repr(mask), vars(masks))), matrix(mask))


NAMES: dict[str, Any] = {**vars(masks), "t": torch.tensor, "ids": torch.zeros(2, 11).long(), "ones": torch.ones(5, 7)}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("causal() & sliding_window(128) & padding(t([3, 5]))", "causal() & sliding_window(128) & padding([3, 5])"),
        ("(causal() | prefix(3)) & block_local(2)", "(causal() | prefix(3)) & block_local(2)"),
        ("causal() | sliding_window(2) & block_local(2)", "causal() | sliding_window(2) & block_local(2)"),
        ("~(causal() & sliding_window(2))", "~(causal() & sliding_window(2))"),
        ("causal() & dilated(3, 2)", "causal() & sliding_window(5) & strided(2)"),
        ("prefix(t([2, 3]))", "prefix([2, 3])"),
        ("padding(t([3]), side='left', max_length=7)", "padding([3], side='left')"),
        ("padding(t([3]), mask_queries=True)", "padding([3], mask_queries=True)"),
        ("documents(ids)", "documents(<2x11>)"),
        ("block_sparse(2, ones[:2, :2] > 0)", "block_sparse(2, [[True, True], [True, True]])"),
        ("from_tensor(ones > 0)", "from_tensor(<5x7>)"),
        ("from_key_padding_mask(ones[:1, :2] > 0)", "keys([[False, False]])"),
        ("per_head(2 * [causal()] + [prefix(2)])", "per_head(2 * [causal()] + 1 * [prefix(2)])"),
    ],
)
def test_repr(call: str, text: str) -> None:
    assert repr(eval(call, NAMES)) == text


def test_draw() -> None:
    assert masks.causal().draw(3) == "■ · ·\n■ ■ ·\n■ ■ ■"
    assert masks.causal().draw(2, 3) == "■ ■ ·\n■ ■ ■"
    assert masks.padding(torch.tensor([2, 1])).draw(2, 3) == "■ ■ ·\n■ ■ ·"
    assert masks.dilated(2, 2).draw(4) == "■ · ■ ·\n· ■ · ■\n■ · ■ ·\n· ■ · ■"
