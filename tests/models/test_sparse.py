"""Longformer, BigBird and strided attention: their options, what they are under a mask, and what a pattern saves."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import check_attention, explain_path, masks
from attnlab.models.bigbird import BigBirdAttention
from attnlab.models.longformer import LongformerAttention
from attnlab.models.multihead import MultiAttention
from attnlab.models.strided import StridedAttention
from attnlab.nn.attention import Attention
from attnlab.nn.multihead import MultiHeadBase
from attnlab.nn.pruning import prune_heads

B, N, H, D = 2, 13, 3, 24
SMALL: dict[str, partial[MultiHeadBase]] = {
    "longformer": partial(LongformerAttention, window_size=2, num_global=2),
    "longformer, few neighbours": partial(LongformerAttention, window_size=1, num_global=3),
    "longformer, turned": partial(LongformerAttention, window_size=3, positions="rotary"),
    "longformer, with a bias": partial(LongformerAttention, window_size=3, positions="t5"),
    "bigbird": partial(BigBirdAttention, block=2, window=1, num_random=1),
    "bigbird, nothing global": partial(BigBirdAttention, block=1, num_global=0, num_random=2),
    "bigbird, turned": partial(BigBirdAttention, block=2, num_random=0, positions="rotary"),
    "strided": partial(StridedAttention, stride=3),
    "strided, with a bias": partial(StridedAttention, stride=3, positions="alibi"),
    "fixed": partial(StridedAttention, pattern="fixed", stride=4, summary=2),
}
some = pytest.mark.parametrize("kind", SMALL)


def made(kind: str, **options: Any) -> MultiHeadBase:
    """A layer whose biases are moved off zero, where they would hide a mistake."""
    torch.manual_seed(0)
    layer = SMALL[kind](D, H, **options).double().eval()
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return layer


def tokens(length: int = N, width: int = D) -> Tensor:
    return torch.randn(B, length, width, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


@some
def test_small_patterns_keep_every_promise(kind: str) -> None:
    check_attention(SMALL[kind], fast=True)


@some
@pytest.mark.parametrize("causal", [True, False])
def test_it_is_multi_head_attention_under_its_pattern(kind: str, causal: bool) -> None:
    layer = made(kind, causal=causal)
    multi = MultiAttention(D, H, causal=causal, positions=layer.positions).double()
    state = {name: t for name, t in layer.state_dict().items() if name not in ("seed", *GLOBAL)}
    multi.load_state_dict(state)
    rule = layer.attention_pattern(N)
    assert rule is not None
    first = layer.num_global if isinstance(layer, LongformerAttention) else 0
    torch.testing.assert_close(layer(tokens())[:, first:], multi(tokens(), mask=rule)[:, first:])
    torch.testing.assert_close(
        layer.attention_weights(tokens())[:, :, first:], multi.attention_weights(tokens(), mask=rule)[:, :, first:]
    )


GLOBAL = ("qkv_global.weight", "qkv_global.bias")


def test_longformer_s_global_rows_alone_ask_with_the_second_set() -> None:
    layer, x = made("longformer"), tokens()
    layer.load_state_dict(
        {**layer.state_dict(), **{f"qkv_global.{p}": layer.get_parameter(f"qkv.{p}") for p in ("weight", "bias")}}
    )
    before = layer(x)
    with torch.no_grad():
        layer.get_parameter("qkv_global.weight").neg_()
    moved = (layer(x) - before).abs().amax((0, 2))
    assert moved[:2].min() > 1e-3
    assert moved[2:].max() == 0


@some
def test_pruned_is_the_same_without_those_heads(kind: str) -> None:
    layer, x = made(kind, causal=True), tokens()
    for gone in ([1], [0, 2]):
        pruned, whole = prune_heads(layer, gone), made(kind, causal=True)
        whole.load_state_dict(layer.state_dict())
        with torch.no_grad():
            whole.output.weight.unflatten(1, (H, D // H))[:, gone] = 0
        torch.testing.assert_close(pruned(x), whole(x), rtol=0, atol=1e-13)


def weights_computed(layer: Attention, length: int) -> int:
    """What the tiles hold, over all heads."""
    rule = layer.attention_pattern(length)
    assert rule is not None
    bound = (rule & masks.causal()).bind(length, shape=(1, layer.num_heads))
    runs = bound.head_groups() or [(slice(0, layer.num_heads), bound)]
    total = 0
    for heads, own in runs:
        for rows, keys in own.tiles(64):
            seen = len(keys) if isinstance(keys, Tensor) else len(range(length)[keys])
            total += (heads.stop - heads.start) * len(range(length)[rows]) * seen
    return total


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda n: LongformerAttention(32, 4), 1.1),
        (lambda n: BigBirdAttention(32, 4), 1.15),
        (lambda n: StridedAttention(32, 4, stride=round(math.sqrt(n))), 1.5),
        (lambda n: StridedAttention(32, 4, pattern="fixed", stride=round(math.sqrt(n))), 1.5),
    ],
    ids=["longformer", "bigbird", "strided", "fixed"],
)
def test_the_weights_that_are_computed_grow_as_the_card_says(make: Any, most: float) -> None:
    few, many = (weights_computed(make(n), n) for n in (1024, 8192))
    assert 0.9 < math.log(many / few) / math.log(8) < most
    assert many < 0.15 * 4 * 8192**2 / 2


@pytest.mark.parametrize("kind", ["longformer", "bigbird", "strided", "fixed"])
@pytest.mark.parametrize("causal", [True, False])
def test_long_sequences_compute_what_is_reached_alone(kind: str, causal: bool) -> None:
    layer, x = made(kind, causal=causal), tokens(1001)
    multi = MultiAttention(D, H, causal=causal).double()
    multi.load_state_dict({name: t for name, t in layer.state_dict().items() if name not in ("seed", *GLOBAL)})
    written = layer.attention_pattern(1001).materialize(1001)  # type: ignore[union-attr]
    first = getattr(layer, "num_global", 0)
    with torch.no_grad():
        assert "matrix" not in [path.name for path in explain_path(layer, x) if "from_tensor" not in path.why]
        torch.testing.assert_close(
            layer(x)[:, first:], multi(x, mask=masks.from_tensor(written[(None,) * (4 - written.dim())]))[:, first:]
        )


# BigBird's graph


def test_bigbird_sees_the_same_blocks_after_it_was_saved_and_in_a_longer_text() -> None:
    layer, other = made("bigbird"), SMALL["bigbird"](D, H).double()
    assert int(other.seed) != int(layer.seed), "layers differ"
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(tokens()), layer(tokens()))
    short, long = (layer.attention_pattern(n).materialize(n) for n in (N, 3 * N))  # type: ignore[union-attr]
    assert torch.equal(long[:N, :N], short)


def test_random_blocks_are_spread_and_as_many_as_were_drawn() -> None:
    links = masks.random_blocks(1, 3, 5).materialize(512)
    assert torch.equal(links, links.T)
    assert not links.diagonal().any()
    assert 2.7 * 512 < links.tril().sum() <= 3 * 512, "few draws meet"
    assert links[256:, :256].sum(0).float().std() < 3, "no block is drawn by all"


# Refusals


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (partial(LongformerAttention, window_size=0), ValueError, "window_size must be at least 1, not 0"),
        (partial(LongformerAttention, num_global=0), ValueError, "num_global must be at least 1, not 0"),
        (partial(LongformerAttention, num_global=1.5), TypeError, "num_global must be a whole number, not 1.5"),
        (
            partial(BigBirdAttention, window=2),
            ValueError,
            "window must be odd, its own block in the middle, not 2; try 3",
        ),
        (partial(BigBirdAttention, block=0), ValueError, "block must be at least 1, not 0"),
        (partial(BigBirdAttention, num_random=-1), ValueError, "num_random must be at least 0, not -1"),
        (partial(BigBirdAttention, num_global=0.0), TypeError, "num_global must be a whole number, not 0.0"),
        (
            partial(BigBirdAttention, num_random=10**12),
            ValueError,
            "num_random must be at most 1,000, not 1000000000000",
        ),
        (partial(BigBirdAttention, num_random=False), TypeError, "num_random must be a whole number, not False"),
        (partial(StridedAttention, pattern="stride"), ValueError, "pattern must be 'strided' or 'fixed', not 'stride'"),
        (partial(StridedAttention, stride=0), ValueError, "stride must be at least 1, not 0"),
        (partial(StridedAttention, stride=4, summary=5), ValueError, r"summary \(5\) must be at most stride \(4\)"),
    ],
)
def test_bad_options_are_refused(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make(D, H)


def test_one_head_cannot_look_near_and_far() -> None:
    with pytest.raises(ValueError, match="num_heads must be at least 2"):
        StridedAttention(D, 1)
