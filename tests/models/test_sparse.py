"""Sliding-window, chunked, Longformer, BigBird and strided attention: what their patterns save, and random blocks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from comparison import CAUSAL, perturbed, random
from torch import Tensor

from attnlab import KVCache, explain_path, masks
from attnlab.models.bigbird import BigBirdAttention
from attnlab.models.chunked import ChunkedAttention
from attnlab.models.longformer import LongformerAttention
from attnlab.models.multihead import MultiAttention
from attnlab.models.slidingwindow import SlidingWindowAttention
from attnlab.models.strided import StridedAttention
from attnlab.nn.attention import Attention
from attnlab.nn.multihead import MultiHeadBase

B, N, H, D = 2, 13, 3, 24
SMALL: dict[str, partial[MultiHeadBase]] = {
    "sliding window": partial(SlidingWindowAttention, window_size=3),
    "chunks": partial(ChunkedAttention, chunk_size=3),
    "longformer": partial(LongformerAttention, window_size=2, num_global=2),
    "bigbird": partial(BigBirdAttention, block_size=2, window_size=1, num_random=1),
    "strided": partial(StridedAttention, stride=3),
    "fixed": partial(StridedAttention, pattern="fixed", stride=4, summary=2),
}


def pattern_of(layer: Attention, length: int) -> masks.Mask:
    pattern = layer.attention_pattern(length)
    assert pattern is not None
    return pattern


def tokens(length: int = N) -> Tensor:
    return random(B, length, D)


def entries_computed(layer: Attention, length: int) -> int:
    """The number of scores in all tiles, over all heads."""
    bound = (pattern_of(layer, length) & masks.causal()).bind(length, shape=(1, layer.num_heads))
    total = 0
    for heads, mask in bound.head_groups() or [(slice(0, layer.num_heads), bound)]:
        for rows, keys in mask.tiles(64):
            columns = len(keys) if isinstance(keys, Tensor) else len(range(length)[keys])
            total += (heads.stop - heads.start) * len(range(length)[rows]) * columns
    return total


@pytest.mark.parametrize(
    ("make_layer", "exponent"),
    [
        (lambda n: SlidingWindowAttention(32, 4), 1.1),
        (lambda n: ChunkedAttention(32, 4), 1.1),
        (lambda n: LongformerAttention(32, 4), 1.1),
        (lambda n: BigBirdAttention(32, 4), 1.15),
        (lambda n: StridedAttention(32, 4, stride=round(math.sqrt(n))), 1.5),
        (lambda n: StridedAttention(32, 4, pattern="fixed", stride=round(math.sqrt(n))), 1.5),
    ],
    ids=["sliding window", "chunked", "longformer", "bigbird", "strided", "fixed"],
)
def test_the_number_of_scores_grows_as_the_card_says(make_layer: Any, exponent: float) -> None:
    few, many = (entries_computed(make_layer(n), n) for n in (1024, 8192))
    assert 0.9 < math.log(many / few) / math.log(8) < exponent
    assert many < 0.15 * 4 * 8192**2 / 2


@pytest.mark.parametrize("kind", SMALL)
@CAUSAL
@torch.no_grad()
def test_long_sequences_compute_only_the_pattern(kind: str, causal: bool) -> None:
    layer, x = perturbed(SMALL[kind](D, H, causal=causal)), tokens(1001)
    multihead = MultiAttention(D, H, causal=causal).double()
    multihead.load_state_dict({key: layer.state_dict()[key] for key in multihead.state_dict()})
    matrix = pattern_of(layer, 1001).materialize(1001)
    mask = masks.from_tensor(matrix[(None,) * (4 - matrix.dim())])
    rows = slice(getattr(layer, "num_global", 0), None)
    assert "matrix" not in [path.name for path in explain_path(layer, x) if "from_tensor" not in path.why]
    torch.testing.assert_close(layer(x)[:, rows], multihead(x, mask=mask)[:, rows])


@pytest.mark.parametrize(
    "layer",
    [SlidingWindowAttention(D, H, window_size=4, causal=True), ChunkedAttention(D, H, chunk_size=4, causal=True)],
)
def test_a_windowed_cache_of_constant_size_gives_the_full_pass(layer: MultiHeadBase) -> None:
    layer, x, cache = layer.double(), tokens(401), KVCache(401, window=4)
    sizes, steps = set(), []
    with torch.no_grad():
        for token in x.split(1, 1):
            steps.append(layer(token, cache=cache))
            sizes.add(cache.bytes)
        torch.testing.assert_close(torch.cat(steps, 1), layer(x))
        assert len(sizes) == 1
        assert cache.num_cached < 100
        with pytest.raises(ValueError, match=r"3 tokens"):
            layer(x, cache=KVCache(401, window=3))


def test_chunks_do_not_support_packing() -> None:
    assert not ChunkedAttention.supports_packing
    layer, x = perturbed(ChunkedAttention(D, H, chunk_size=3, causal=True)), tokens(5)
    packed = torch.cat([tokens(1), x], 1)
    documents = masks.documents(torch.tensor([0, 1, 1, 1, 1, 1]))
    assert not torch.allclose(layer(packed, mask=documents)[:, 1:], layer(x)), "the borders of the second text move"


# The graph of BigBird


def test_bigbird_draws_the_same_blocks_after_loading_and_in_longer_sequences() -> None:
    layer, other = (SMALL["bigbird"](D, H).double() for _ in range(2))
    assert not torch.equal(other.get_buffer("seed"), layer.get_buffer("seed")), "each layer draws its own blocks"
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(tokens()), layer(tokens()))
    short, long = (pattern_of(layer, n).materialize(n) for n in (N, 3 * N))
    assert torch.equal(long[:N, :N], short)


def test_random_blocks_are_spread_evenly() -> None:
    links = masks.random_blocks(1, 3, 5).materialize(512)
    assert torch.equal(links, links.T)
    assert not links.diagonal().any()
    assert 2.7 * 512 < links.tril().sum() <= 3 * 512, "few draws coincide"
    assert links[256:, :256].sum(0).float().std() < 3, "no block is drawn by all"
