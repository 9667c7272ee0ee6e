"""Random masks and their whole matrices. Sizes are distinct primes: B = 2, H = 3, N_k = 7."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from attnlab import masks
from attnlab.masks import Mask

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
MATRICES = st.one_of(booleans(KEYS, KEYS), booleans(B, KEYS, KEYS), booleans(B, H, KEYS, KEYS))
SQUARE = st.one_of(POSITIONAL, MATRICES.map(masks.from_tensor))


def combined(leaves: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
    def grow(smaller: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
        pairs = st.tuples(smaller, smaller)
        return st.one_of(pairs.map(lambda p: p[0] & p[1]), pairs.map(lambda p: p[0] | p[1]), smaller.map(lambda m: ~m))

    return st.recursive(leaves, grow, max_leaves=4)


def matrix(mask: Mask, queries: int = KEYS, offset: int | None = None) -> Tensor:
    """The whole (B, H, N_q, N_k)."""
    return mask.materialize(queries, KEYS, offset=offset).expand(B, H, queries, KEYS)
