"""Differential attention: its options, what it is without the second map, and each of its two queries by itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import KVCache, check_attention, masks
from attnlab.models.differential import DifferentialAttention
from attnlab.models.differential.differential import Difference
from attnlab.nn.pruning import prune_heads
from attnlab.ops.softmax import softmax_weights
from attnlab.positions import Rotary

B, N, H, D, d = 2, 7, 3, 30, 5


def made(D: int = D, H: int = H, **options: Any) -> DifferentialAttention:
    """A layer whose parameters are moved off where they start, where they would hide a mistake."""
    torch.manual_seed(0)
    layer = DifferentialAttention(D, H, **options).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return layer


def tokens(length: int = N, width: int = D) -> Tensor:
    return torch.randn(B, length, width, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def test_four_vectors_and_the_gains_are_all_that_is_new() -> None:
    count = sum(parameter.numel() for parameter in DifferentialAttention(D, H).parameters())
    assert count == 4 * D * (D + 1) + 4 * d + 2 * d


def test_without_the_second_map_the_first_is_left() -> None:
    layer, x = made(lambda_init=0.0, causal=True), tokens()
    with torch.no_grad():
        layer.lambda_qk.zero_()  # exp(0) - exp(0)
    Q, K, _ = (part.unflatten(-1, (H, 2, d))[..., 0, :].transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    bound = masks.causal().bind(N, N, shape=(B, H))
    torch.testing.assert_close(layer.attention_weights(x), softmax_weights(Q, K, bound))


def test_two_maps_that_are_equal_leave_one_less_lambda() -> None:
    layer, x = made(), tokens()
    with torch.no_grad():
        for tensor in (layer.qkv.weight, layer.qkv.bias):
            pairs = tensor.unflatten(0, (3, H, 2, d))
            pairs[:2, :, 1] = pairs[:2, :, 0]
    q1, k1, q2, k2 = layer.lambda_qk.detach()
    left = 1 - (torch.exp(q1 @ k1) - torch.exp(q2 @ k2) + layer.lambda_init)
    torch.testing.assert_close(layer.attention_weights(x).sum(-1), left.expand(B, H, N))


@pytest.mark.parametrize("positions", ["rotary", "alibi", "t5"])
def test_positions_keep_every_promise(positions: str) -> None:
    # Where both maps nearly agree, the norm blows up what bfloat16 left of them: that one holds for some weights only.
    skip = ["bfloat16_autocast", "low_precision_accuracy"]
    check_attention(partial(DifferentialAttention, num_heads=2, positions=positions), fast=True, skip=skip)


def test_each_query_is_turned_by_itself() -> None:
    layer, x = made(24, positions="rotary", causal=True), tokens(width=24)
    assert isinstance(layer.positions, Rotary)
    assert layer.positions.width == 4  # d, not 2d
    cache = KVCache(N)
    with torch.no_grad():
        steps = torch.cat([layer(part, cache=cache) for part in x.split([3, 1, 3], 1)], 1)
    torch.testing.assert_close(steps, layer(x))
    before = layer.attention_map(x)
    with torch.no_grad():  # the two maps change their places in every head
        for tensor in (layer.qkv.weight, layer.qkv.bias):
            pairs = tensor.unflatten(0, (3, H, 2, 4))
            pairs[:2] = pairs[:2].flip(2)
    after = layer.attention_map(x)
    assert isinstance(before, Difference)
    assert isinstance(after, Difference)
    torch.testing.assert_close(after.second.materialize(), before.start.attention_weights())


@pytest.mark.parametrize("positions", ["none", "rotary", "alibi", "t5"])
def test_a_head_that_goes_is_a_head_that_says_nothing(positions: Any) -> None:
    layer, x = made(24, positions=positions), tokens(width=24)
    small = prune_heads(layer, [1])
    torch.testing.assert_close(small.attention_weights(x), layer.attention_weights(x)[:, [0, 2]])
    with torch.no_grad():
        layer.output.weight[:, 8:16] = 0
    torch.testing.assert_close(small(x), layer(x))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_heads": 6}, r"^embed_dim / num_heads \(5\) must be even: each head has two queries$"),
        ({"lambda_init": 1.0}, "^lambda_init must be at least 0 and below 1, not 1.0$"),
        ({"lambda_init": -0.1}, "^lambda_init must be at least 0 and below 1, not -0.1$"),
        ({"lambda_init": float("nan")}, "^lambda_init must be at least 0 and below 1, not nan$"),
        ({"positions": "rotary"}, "^rotary positions need an even head_dim, not 5"),
        ({"positions": Rotary(10)}, "^these rotary positions are for heads of width 10, not 5$"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DifferentialAttention(D, **{"num_heads": H, **options})
