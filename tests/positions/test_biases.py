"""ALiBi and T5 biases against their papers, and the gradients of the T5 table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from attnlab.masks import sliding_window
from attnlab.models.multihead import MultiAttention
from attnlab.positions import ALiBi, T5Bias

H = 3


def test_alibi_slopes_match_the_paper() -> None:
    assert list(ALiBi(8).slopes) == [2.0**-i for i in range(1, 9)]
    assert list(ALiBi(6).slopes) == [2.0**-i for i in (2, 4, 6, 8, 1, 3)]
    bias = ALiBi(2).attention_bias(3, 5, torch.device("cpu")).tensor().squeeze(0)
    assert bias.shape == (2, 3, 5)
    assert (bias[0] * -16).tolist() == [[2, 1, 0, 1, 2], [3, 2, 1, 0, 1], [4, 3, 2, 1, 0]]


def test_t5_ranges_match_the_paper() -> None:
    causal, both = T5Bias(H, causal=True), T5Bias(H)
    back = {0: 0, 1: 1, 15: 15, 16: 16, 31: 21, 64: 26, 127: 31, 128: 31, 10_000: 31}
    for far, expected in back.items():
        assert int(causal.ranges(torch.tensor(-far))) == expected, far
    assert int(causal.ranges(torch.tensor(5))) == 0
    for offset, expected in {0: 0, -1: 1, -7: 7, -8: 8, -127: 15, 1: 17, 7: 23, 8: 24, 500: 31}.items():
        assert int(both.ranges(torch.tensor(offset))) == expected, offset


@pytest.mark.parametrize("causal", [False, True])
def test_exactly_the_valid_ranges_are_used(causal: bool) -> None:
    for num_buckets, max_distance in ((4, 2), (4, 100), (16, 9), (32, 128), (64, 1000)):
        t5 = T5Bias(H, causal=causal, num_buckets=num_buckets, max_distance=max(max_distance, num_buckets // 2 + 1))
        ranges = t5.ranges(torch.arange(-2000, 1 if causal else 2001))
        # Later keys have a range for distance 0, which is never used.
        expected = set(range(num_buckets)) - (set() if causal else {num_buckets // 2})
        assert set(ranges.tolist()) <= expected
        assert {0, num_buckets - 1} <= set(ranges.tolist())
        assert bool((ranges[: 2001 if causal else 2000].diff() <= 0).all()), "ranges increase with the distance"


def test_the_bias_is_read_from_the_table() -> None:
    t5 = T5Bias(H, num_buckets=6, max_distance=9)
    bias = t5.attention_bias(5, 7, torch.device("cpu")).tensor().squeeze(0)
    for i in range(5):
        for j in range(7):
            expected = t5.table.weight[int(t5.ranges(torch.tensor(j - i - 2)))]
            assert torch.equal(bias[:, i, j], expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, sliding_window(9)])
def test_the_gradient_of_the_table_in_every_backend(causal: bool, mask: object) -> None:
    torch.manual_seed(0)
    layer = MultiAttention(6, H, positions="t5", causal=causal).double()
    table, x = layer.positions.table.weight, torch.randn(2, 211, 6, dtype=torch.float64)
    direction = torch.randn(211, 6, dtype=torch.float64)

    def loss() -> torch.Tensor:
        return (layer(x, mask=mask) * direction).sum()

    loss().backward()
    step = 1e-5 * torch.randn_like(table)
    assert table.grad is not None
    with torch.no_grad():
        expected = (table.grad * step).sum()
        table.add_(step)
        ahead = loss()
        table.sub_(2 * step)
        behind = loss()
    torch.testing.assert_close((ahead - behind) / 2, expected, rtol=1e-6, atol=1e-12)


def test_the_table_learns_under_dropout() -> None:
    layer = MultiAttention(12, H, positions="t5", dropout=0.2)
    layer(torch.randn(2, 131, 12)).square().sum().backward()
    gradient = layer.positions.table.weight.grad
    assert gradient is not None
    assert gradient.abs().amax(1).nonzero().flatten().tolist() == [i for i in range(32) if i != 16]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: T5Bias(H, num_buckets=2), ValueError, "num_buckets must be an integer from 4 to 65536, not 2"),
        (lambda: T5Bias(H, causal=True, num_buckets=3), ValueError, "num_buckets must be even"),
        (lambda: T5Bias(H, num_buckets=8.0), TypeError, "num_buckets must be an integer, not 8.0"),
        (lambda: T5Bias(H, max_distance=8), ValueError, "max_distance must be an integer from 9 to"),
        (lambda: T5Bias(H, causal=True, max_distance=16), ValueError, "max_distance must be an integer from 17 to"),
    ],
)
def test_invalid_arguments_are_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
