"""Fully masked rows are found, and attention over padded batches is computed, without a large matrix."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
import torch
from drawn_masks import KEYS, POSITIONAL, B, H, combined, matrix
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attnlab import masks
from attnlab.masks import Mask
from attnlab.models.multihead import MultiAttention
from attnlab.models.strided import StridedAttention

N = 701


@given(st.lists(st.one_of(POSITIONAL, combined(POSITIONAL)), min_size=1, max_size=4), st.data())
def test_fully_masked_matches_the_matrix(rules: list[Mask], data: st.DataObject) -> None:
    """Conjunctions over all rules, also of a cache that has dropped its first keys, and with more queries than keys."""
    mask = functools.reduce(operator.and_, rules)
    first = data.draw(st.integers(0, KEYS - 1))
    queries, offset = data.draw(st.integers(1, KEYS)), data.draw(st.integers(-KEYS, KEYS))
    bound = mask.bind(queries, KEYS - first, shape=(B, H), offset=offset, first=first)
    expected = ~matrix(mask, queries, first + offset)[..., first:].any(-1).any(1)
    assert torch.equal(bound.fully_masked().expand(B, queries), expected)


LENGTHS = torch.tensor([N, 0, 5])
PADDED = {
    "right padding": masks.padding(LENGTHS),
    "left padding": masks.padding(LENGTHS, side="left", max_length=N),
    "padding of queries": masks.padding(LENGTHS, mask_queries=True),
    "padded keys": masks.from_key_padding_mask(torch.arange(3 * N).view(3, N) % 7 < 5),
}
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
    **PADDED,
    "per head": masks.per_head([masks.sliding_window(5), masks.strided(7), ~masks.causal()]),
}
IN_PARTS = {
    "documents": masks.documents(torch.arange(N) // 23),
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


def largest_in_a_pass(layer: nn.Module, x: Tensor, mask: Mask, train: bool) -> int:
    x.requires_grad_(train)
    with Largest() as largest:
        out = layer.train(train)(x, mask=mask)
        if train:
            out.sum().backward()
    return largest.size


@pytest.mark.parametrize("name", [*PARTS, *IN_PARTS])
@pytest.mark.parametrize("padded", PADDED.values(), ids=PADDED)
def test_fully_masked_rows_are_found_without_a_matrix(name: str, padded: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.masks.bound.CHUNK", 2**14)
    mask = masks.causal() & (PARTS | IN_PARTS)[name] & padded
    bound, out = mask.bind(N, shape=(3, 3)), torch.ones(3, N, 2)
    with Largest() as largest:
        result = bound.zero_fully_masked_rows(out)
    assert largest.size < (30_000 if name in PARTS else 100_000), "the matrix has 3 * 701 * 701 elements, 1.5 million"
    expected = mask.materialize(N).any(-1).expand(3, 3, N).any(1)
    assert torch.equal(result[..., 0].bool(), expected)


@pytest.mark.parametrize("fill", [0.4, 0.95])
@pytest.mark.parametrize("queries", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_causal_attention_over_a_padded_batch_materializes_no_matrix(fill: float, queries: bool, train: bool) -> None:
    """Neither for the kernel nor for the fully masked rows; at most what causal attention needs."""
    mask = masks.padding(torch.tensor([N, max(5, round((2 * fill - 1) * N))]), mask_queries=queries)
    assert largest_in_a_pass(MultiAttention(6, 3, causal=True), torch.randn(2, N, 6), mask, train) < N * N / 4


@pytest.mark.parametrize("padded", PADDED.values(), ids=PADDED)
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_memory_of_strided_attention_over_a_padded_batch(padded: Mask, train: bool, causal: bool) -> None:
    """Its distant heads use one kernel call for all residues, at a length that is not a multiple of the stride."""
    layer = StridedAttention(6, 2, stride=23, causal=causal)
    assert largest_in_a_pass(layer, torch.randn(3, N, 6), padded, train) < N * N / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_fully_masked_rows_are_found_in_one_compiled_graph_for_every_length(name: str) -> None:
    torch._dynamo.reset()
    mask = masks.causal() & PARTS[name] & PADDED["padding of queries"]

    def zeroed(out: Tensor) -> Tensor:
        return mask.bind(out.shape[1], shape=(3, 3), device=out.device).zero_fully_masked_rows(out)

    out = torch.ones(3, N, 2)
    assert torch.equal(torch.compile(zeroed, fullgraph=True, backend="eager", dynamic=True)(out), zeroed(out))


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


def test_queries_after_the_last_key_are_fully_masked_by_a_window() -> None:
    """Although a window includes the diagonal."""
    out = masks.sliding_window(2).bind(3, KEYS, offset=KEYS).zero_fully_masked_rows(torch.ones(1, 3, 2))
    assert out[0, :, 0].tolist() == [1.0, 0.0, 0.0]
