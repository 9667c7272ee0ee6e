"""Sliding-window, chunked, Longformer, BigBird and strided attention: their patterns, what these save, and options."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import KVCache, check_attention, explain_path, masks
from attnlab.models.bigbird import BigBirdAttention
from attnlab.models.chunked import ChunkedAttention
from attnlab.models.longformer import LongformerAttention
from attnlab.models.multihead import MultiAttention
from attnlab.models.slidingwindow import SlidingWindowAttention
from attnlab.models.strided import StridedAttention
from attnlab.network.pruning import prune_heads
from attnlab.nn.attention import Attention
from attnlab.nn.multihead import MultiHeadBase

B, N, H, D = 2, 13, 3, 24
SMALL: dict[str, partial[MultiHeadBase]] = {
    "sliding window": partial(SlidingWindowAttention, window_size=3),
    "sliding window of 1": partial(SlidingWindowAttention, window_size=1),
    "dilated window": partial(SlidingWindowAttention, window_size=2, dilation=2),
    "sliding window, alibi": partial(SlidingWindowAttention, window_size=3, positions="alibi"),
    "sliding window, rotary": partial(SlidingWindowAttention, window_size=3, positions="rotary"),
    "chunks of 2": partial(ChunkedAttention, chunk_size=2),
    "chunks, alibi": partial(ChunkedAttention, chunk_size=3, positions="alibi"),
    "chunks, rotary": partial(ChunkedAttention, chunk_size=3, positions="rotary"),
    "longformer": partial(LongformerAttention, window_size=2, num_global=2),
    "longformer, window of 1": partial(LongformerAttention, window_size=1, num_global=3),
    "longformer, rotary": partial(LongformerAttention, window_size=3, positions="rotary"),
    "longformer, t5": partial(LongformerAttention, window_size=3, positions="t5"),
    "bigbird": partial(BigBirdAttention, block_size=2, window_size=1, num_random=1),
    "bigbird without global tokens": partial(BigBirdAttention, block_size=1, num_global=0, num_random=2),
    "bigbird, rotary": partial(BigBirdAttention, block_size=2, num_random=0, positions="rotary"),
    "strided": partial(StridedAttention, stride=3),
    "strided, alibi": partial(StridedAttention, stride=3, positions="alibi"),
    "fixed": partial(StridedAttention, pattern="fixed", stride=4, summary=2),
}
GLOBAL = ("qkv_global.weight", "qkv_global.bias")
every_kind = pytest.mark.parametrize("kind", SMALL)
causal_or_not = pytest.mark.parametrize("causal", [True, False])


def make(kind: str, **options: Any) -> MultiHeadBase:
    """A layer whose biases are not zero, which would hide errors."""
    torch.manual_seed(0)
    layer = SMALL[kind](D, H, **options).double().eval()
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return layer


def multihead_like(layer: MultiHeadBase) -> MultiAttention:
    """Multi-head attention with the same parameters."""
    multi = MultiAttention(D, H, causal=layer.causal, positions=layer.positions).double()
    multi.load_state_dict({name: t for name, t in layer.state_dict().items() if name not in ("seed", *GLOBAL)})
    return multi


def pattern_of(layer: Attention, length: int) -> masks.Mask:
    pattern = layer.attention_pattern(length)
    assert pattern is not None
    return pattern


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "sliding window of 1",
        "dilated window",
        "sliding window, alibi",
        "chunks, rotary",
        "longformer, window of 1",
        "longformer, t5",
        "bigbird without global tokens",
        "bigbird, rotary",
        "strided, alibi",
        "fixed",
    ],
)
def test_conformance(kind: str) -> None:
    # In some of the checks a token attends only to itself, so none reaches another and all heads agree.
    isolated = kind in ("sliding window of 1", "dilated window")
    skip = ["tokens_interact", "weights_are_per_head"] if isolated else []
    check_attention(SMALL[kind], fast=True, skip=skip)


@every_kind
@causal_or_not
def test_the_layer_is_multi_head_attention_under_its_pattern(kind: str, causal: bool) -> None:
    layer, x = make(kind, causal=causal), tokens()
    multi, pattern = multihead_like(layer), pattern_of(layer, N)
    rows = slice(layer.num_global if isinstance(layer, LongformerAttention) else 0, None)
    torch.testing.assert_close(layer(x)[:, rows], multi(x, mask=pattern)[:, rows])
    found, expected = layer.attention_weights(x), multi.attention_weights(x, mask=pattern)
    torch.testing.assert_close(found[:, :, rows], expected[:, :, rows])


@pytest.mark.parametrize(
    ("make_layer", "size"), [(SlidingWindowAttention, "window_size"), (ChunkedAttention, "chunk_size")]
)
@causal_or_not
def test_a_pattern_as_long_as_the_sequence_is_full_attention(make_layer: Any, size: str, causal: bool) -> None:
    for length, full in ((N, True), (N + 5, True), (N - 1, False)):
        layer = make_layer(D, H, causal=causal, **{size: length}).double()
        assert torch.allclose(layer(tokens()), multihead_like(layer)(tokens()), rtol=0, atol=1e-12) == full


@causal_or_not
def test_each_chunk_is_multi_head_attention_by_itself(causal: bool) -> None:
    layer = make("chunks of 2", causal=causal)
    multi = multihead_like(layer)
    expected = torch.cat([multi(chunk) for chunk in tokens().split(2, 1)], 1)
    torch.testing.assert_close(layer(tokens()), expected)


def test_only_global_tokens_of_longformer_use_the_second_projections() -> None:
    layer, x = make("longformer"), tokens()
    copies = {f"qkv_global.{p}": layer.get_parameter(f"qkv.{p}") for p in ("weight", "bias")}
    layer.load_state_dict({**layer.state_dict(), **copies})
    before = layer(x)
    with torch.no_grad():
        layer.get_parameter("qkv_global.weight").neg_()
    change = (layer(x) - before).abs().amax((0, 2))
    assert change[:2].min() > 1e-3
    assert change[2:].max() == 0


@every_kind
@pytest.mark.parametrize("pruned_heads", [[1], [0, 2]])
def test_pruning_a_head_equals_zeroing_its_output(kind: str, pruned_heads: list[int]) -> None:
    layer, x = make(kind, causal=True), tokens()
    pruned = prune_heads(layer, pruned_heads)
    with torch.no_grad():
        layer.output.weight.unflatten(1, (H, D // H))[:, pruned_heads] = 0
    torch.testing.assert_close(pruned(x), layer(x), rtol=0, atol=1e-13)


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


@pytest.mark.parametrize("kind", ["sliding window", "chunks of 2", "longformer", "bigbird", "strided", "fixed"])
@causal_or_not
def test_long_sequences_compute_only_the_pattern(kind: str, causal: bool) -> None:
    layer, x = make(kind, causal=causal), tokens(1001)
    matrix = pattern_of(layer, 1001).materialize(1001)
    mask = masks.from_tensor(matrix[(None,) * (4 - matrix.dim())])
    rows = slice(getattr(layer, "num_global", 0), None)
    with torch.no_grad():
        assert "matrix" not in [path.name for path in explain_path(layer, x) if "from_tensor" not in path.why]
        torch.testing.assert_close(layer(x)[:, rows], multihead_like(layer)(x, mask=mask)[:, rows])


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
    layer, x = make("chunks, alibi", causal=True), tokens(5)
    packed = torch.cat([tokens(1), x], 1)
    documents = masks.documents(torch.tensor([0, 1, 1, 1, 1, 1]))
    assert not torch.allclose(layer(packed, mask=documents)[:, 1:], layer(x)), "the borders of the second text move"


# The graph of BigBird


def test_bigbird_draws_the_same_blocks_after_loading_and_in_longer_sequences() -> None:
    layer, other = make("bigbird"), SMALL["bigbird"](D, H).double()
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


# Options


@pytest.mark.parametrize("option", ["window_size", "dilation", "chunk_size", "num_global", "stride", "summary"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError), (None, TypeError)]
)
def test_sizes_must_be_positive_integers(option: str, value: Any, error: type[Exception]) -> None:
    make_layer = {
        "window_size": LongformerAttention,
        "dilation": SlidingWindowAttention,
        "chunk_size": ChunkedAttention,
        "num_global": LongformerAttention,
    }.get(option, StridedAttention)
    with pytest.raises(error, match=f"^{option} must be .*, not {value}$"):
        make_layer(D, H, **{option: value})
    if option == "window_size":
        with pytest.raises(error, match=f"^{option} must be .*, not {value}$"):
            SlidingWindowAttention(D, H, window_size=value)


@pytest.mark.parametrize(
    ("make_layer", "error", "message"),
    [
        (
            partial(BigBirdAttention, window_size=2),
            ValueError,
            "window_size must be odd, with the block of the token in the middle, not 2; try 3",
        ),
        (partial(BigBirdAttention, block_size=0), ValueError, "block_size must be at least 1, not 0"),
        (partial(BigBirdAttention, num_random=-1), ValueError, "num_random must be at least 0, not -1"),
        (partial(BigBirdAttention, num_global=0.0), TypeError, "num_global must be a"),
        (
            partial(BigBirdAttention, num_random=10**12),
            ValueError,
            "num_random must be at most 1,000, not 1000000000000",
        ),
        (partial(BigBirdAttention, num_random=False), TypeError, "num_random must be a"),
        (partial(StridedAttention, pattern="stride"), ValueError, "pattern must be 'strided' or 'fixed', not 'stride'"),
        (partial(StridedAttention, stride=4, summary=5), ValueError, r"summary \(5\) must be at most stride \(4\)"),
    ],
)
def test_bad_options_are_refused(make_layer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_layer(D, H)


def test_strided_attention_needs_two_heads() -> None:
    with pytest.raises(ValueError, match="num_heads must be at least 2"):
        StridedAttention(D, 1)
