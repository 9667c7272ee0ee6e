"""Positions against their papers' formulas, and the laws that make them safe to cache, pack and pad."""

from __future__ import annotations

import cmath
import copy
import math
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnlab import check_attention
from attnlab.attention import Unsupported
from attnlab.engines.paths import explain_path
from attnlab.masks import padding
from attnlab.models.multihead import MultiAttention
from attnlab.positions import ALiBi, Rotary, Scaling, T5Bias, make

d, N, H = 10, 7, 3


def x(length: int = N, width: int = d) -> torch.Tensor:
    return torch.randn(2, H, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# Rotary


def test_a_pair_is_a_complex_number_that_turns() -> None:
    out, given_ = Rotary(d, layout="interleaved").rotate(x(), first=5), x()
    for m in range(N):
        for i in range(d // 2):
            before = complex(given_[1, 2, m, 2 * i], given_[1, 2, m, 2 * i + 1])
            after = before * cmath.exp(1j * (m + 5) * 10_000 ** (-2 * i / d))
            assert complex(out[1, 2, m, 2 * i], out[1, 2, m, 2 * i + 1]) == pytest.approx(after, abs=1e-12)


def test_the_layouts_pair_other_numbers() -> None:
    order = torch.tensor([0, 5, 1, 6, 2, 7, 3, 8, 4, 9])
    interleaved = Rotary(d, layout="interleaved").rotate(x()[..., order])
    torch.testing.assert_close(Rotary(d).rotate(x())[..., order], interleaved, rtol=0, atol=0)


@given(
    st.integers(0, 10**6), st.integers(0, 500), st.sampled_from(["half", "interleaved"]), st.sampled_from([1.0, 0.4])
)
def test_scores_follow_from_the_distance(shift: int, distance: int, layout: str, share: float) -> None:
    rotary = Rotary(d, layout=layout, share=share)  # type: ignore[arg-type]
    q, k = x(1), x(1) + 1
    here = (rotary.rotate(q, distance) * rotary.rotate(k, 0)).sum(-1)
    there = (rotary.rotate(q, shift + distance) * rotary.rotate(k, shift)).sum(-1)
    torch.testing.assert_close(here, there, rtol=1e-8, atol=1e-8)


def test_partial_rotary_leaves_the_rest() -> None:
    out = Rotary(d, share=0.4).rotate(x(), first=3)
    assert torch.equal(out[..., 4:], x()[..., 4:])
    torch.testing.assert_close(out[..., :4], Rotary(4).rotate(x()[..., :4], first=3), rtol=0, atol=0)


def test_scaling() -> None:
    plain = Rotary(64).frequencies
    torch.testing.assert_close(Rotary(64, scaling=Scaling("linear", 4)).frequencies, plain / 4)
    ntk = Rotary(64, scaling=Scaling("ntk", 4)).frequencies
    assert ntk[0] == plain[0], "the fastest turn is kept"
    assert ntk[-1].item() == pytest.approx(plain[-1].item() / 4), "the slowest is divided by the factor"
    yarn = Rotary(64, scaling=Scaling("yarn", 4, original=2048))
    turns = 2048 * plain / (2 * math.pi)
    assert torch.equal(yarn.frequencies[turns > 32], plain[turns > 32])
    torch.testing.assert_close(yarn.frequencies[turns < 1], plain[turns < 1] / 4)
    assert bool((yarn.frequencies.diff() < 0).all())
    assert yarn.rotate(torch.ones(1, 64)).norm().item() == pytest.approx(8 * (0.1 * math.log(4) + 1))


def test_angles_stay_exact_when_the_layer_is_halved_or_moved() -> None:
    layer = MultiAttention(24, 2, positions="rotary")
    for moved in (layer.half(), copy.deepcopy(layer).to(torch.bfloat16), pickle.loads(pickle.dumps(layer))):
        assert moved.positions.frequencies.dtype == torch.float64
    far = Rotary(64).rotate(torch.ones(1, 64), first=99_999)
    truth = Rotary(64).rotate(torch.ones(1, 64, dtype=torch.float64), first=99_999)
    torch.testing.assert_close(far.double(), truth, rtol=0, atol=1e-6)


# ALiBi and T5


def test_alibi_slopes_are_the_papers() -> None:
    assert ALiBi(8).slopes.tolist() == [2.0**-i for i in range(1, 9)]
    assert ALiBi(6).slopes.tolist() == [2.0**-i for i in (2, 4, 6, 8, 1, 3)]
    bias = ALiBi(2).bias(3, 5)
    assert bias.shape == (2, 3, 5)
    assert (bias[0] * -16).tolist() == [[2, 1, 0, 1, 2], [3, 2, 1, 0, 1], [4, 3, 2, 1, 0]]


def test_t5_ranges_are_the_papers() -> None:
    causal, both = T5Bias(H, causal=True), T5Bias(H)
    back = {0: 0, 1: 1, 15: 15, 16: 16, 31: 21, 64: 26, 127: 31, 128: 31, 10_000: 31}
    for far, expected in back.items():
        assert int(causal.ranges(torch.tensor(-far))) == expected, far
    assert int(causal.ranges(torch.tensor(5))) == 0
    for offset, expected in {0: 0, -1: 1, -7: 7, -8: 8, -127: 15, 1: 17, 7: 23, 8: 24, 500: 31}.items():
        assert int(both.ranges(torch.tensor(offset))) == expected, offset


def test_the_table_of_t5_learns() -> None:
    layer = MultiAttention(12, H, positions="t5", dropout=0.2)
    layer(torch.randn(2, 131, 12)).square().sum().backward()
    table = layer.positions.table.weight
    assert table.grad is not None
    assert bool(table.grad.abs().sum(0).all())


# In a layer


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["rotary", "alibi", "t5"])
def test_a_layer_with_positions_keeps_every_promise(positions: str) -> None:
    report = check_attention(partial(MultiAttention, positions=positions))
    assert report.passed
    assert report["fast path = reference, outputs"].outcome == "pass"
    assert report["steps with a cache = the full pass"].outcome == "pass"
    assert report["permuted in, permuted out"].outcome == "not claimed"


@pytest.mark.parametrize("positions", ["rotary", "alibi", "t5"])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_on_the_left_shifts_nothing(positions: str, causal: bool) -> None:
    torch.manual_seed(0)
    layer = MultiAttention(12, 3, positions=positions, causal=causal).double()  # type: ignore[arg-type]
    tokens = torch.randn(2, 149, 12, dtype=torch.float64)
    alone = layer(tokens[:, 60:])
    mask = padding(torch.tensor([89, 89]), side="left", total=149)
    torch.testing.assert_close(layer(tokens, mask=mask)[:, 60:], alone)


def test_what_positions_take_away() -> None:
    layer = MultiAttention(12, 3, positions="rotary")
    with pytest.raises(Unsupported, match="does not support context"):
        layer(torch.zeros(1, 2, 12), context=torch.zeros(1, 3, 12))
    assert MultiAttention(12, 3).supports("context")
    mask, tokens = padding(torch.tensor([199, 67, 101]), queries=True), torch.randn(3, 199, 12)
    ways = {p: explain_path(MultiAttention(12, 3, positions=p), tokens, mask=mask)[0].name for p in ("rotary", "alibi")}
    assert ways == {"rotary": "packed", "alibi": "matrix"}


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: MultiAttention(15, 3, positions="rotary"), r"1 of head_dim \(5\) must be even and at least 2, not 5"),
        (lambda: Rotary(8, share=0.1), "must be even and at least 2, not 1"),
        (lambda: Rotary(8, layout="whole"), "layout is 'half' or 'interleaved', not 'whole'"),  # type: ignore[arg-type]
        (lambda: Scaling("linear", 0.5), "at least 1, not 0.5"),
        (lambda: Scaling("yarn", 2.0), "yarn needs original="),
        (lambda: Scaling("cubic", 2.0), "linear, ntk or yarn, not 'cubic'"),  # type: ignore[arg-type]
        (lambda: make("rope", num_heads=1, head_dim=2, causal=False), "none, rotary, alibi or t5, not 'rope'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be(act: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        act()  # type: ignore[operator]


@pytest.mark.parametrize("positions", ["rotary", "alibi", "t5"])
def test_pytorchs_layer_knows_no_positions(positions: str) -> None:
    with pytest.raises(ValueError, match=f"nn.MultiheadAttention knows no positions, and this layer has {positions}"):
        MultiAttention(12, 3, positions=positions).to_torch()  # type: ignore[arg-type]
