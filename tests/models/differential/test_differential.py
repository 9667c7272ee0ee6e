"""Differential attention: the difference of the two softmaxes, positions of each query, pruning and the options."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import KVCache, check_attention, masks
from attnlab.models.differential import DifferentialAttention
from attnlab.models.differential.differential import Difference
from attnlab.network.pruning import prune_heads
from attnlab.ops.softmax import softmax_weights
from attnlab.positions import Rotary

B, N, H, D, d = 2, 7, 3, 30, 5


def make(D: int = D, **options: Any) -> DifferentialAttention:
    """A layer whose parameters differ from their initial values, which would hide errors."""
    torch.manual_seed(0)
    layer = DifferentialAttention(D, H, **options).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return layer


def tokens(width: int = D) -> Tensor:
    return torch.randn(B, N, width, generator=torch.Generator().manual_seed(N), dtype=torch.float64)


def queries_and_keys(layer: DifferentialAttention) -> list[Tensor]:
    """Views of the parameters of ``qkv`` that have the axes (Q, K, V), head, softmax, channel."""
    return [t.unflatten(0, (3, H, 2, layer.head_dim // 2))[:2] for t in (layer.qkv.weight, layer.qkv.bias)]


def test_the_number_of_parameters() -> None:
    count = sum(parameter.numel() for parameter in DifferentialAttention(D, H).parameters())
    assert count == 4 * D * (D + 1) + 4 * d + 2 * d, "four vectors for λ and the gains in addition to multi-head"


def test_lambda_zero_leaves_the_first_softmax() -> None:
    layer, x = make(lambda_init=0.0, causal=True), tokens()
    with torch.no_grad():
        layer.lambda_qk.zero_()  # λ = exp(0) - exp(0)
    Q, K, _ = (part.unflatten(-1, (H, 2, d))[..., 0, :].transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    expected = softmax_weights(Q, K, masks.causal().bind(N, N, shape=(B, H)))
    torch.testing.assert_close(layer.attention_weights(x), expected)


def test_rows_of_two_equal_softmaxes_sum_to_one_minus_lambda() -> None:
    layer, x = make(), tokens()
    with torch.no_grad():
        for pairs in queries_and_keys(layer):
            pairs[:, :, 1] = pairs[:, :, 0]
    q1, k1, q2, k2 = layer.lambda_qk.detach()
    expected = 1 - (torch.exp(q1 @ k1) - torch.exp(q2 @ k2) + layer.lambda_init)
    torch.testing.assert_close(layer.attention_weights(x).sum(-1), expected.expand(B, H, N))


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["rotary", "t5"])
def test_conformance_with_positions(positions: str) -> None:
    # Where both softmaxes nearly agree, the norm amplifies the rounding of bfloat16.
    skip = ["bfloat16_autocast", "low_precision_accuracy"]
    check_attention(partial(DifferentialAttention, num_heads=2, positions=positions), fast=True, skip=skip)


def test_each_query_is_rotated_separately() -> None:
    layer, x = make(24, positions="rotary", causal=True), tokens(24)
    assert isinstance(layer.positions, Rotary)
    assert layer.positions.width == 4, "d, not 2d"
    cache = KVCache(N)
    with torch.no_grad():
        steps = torch.cat([layer(part, cache=cache) for part in x.split([3, 1, 3], 1)], 1)
    torch.testing.assert_close(steps, layer(x))
    before = layer.attention_map(x)
    with torch.no_grad():
        for pairs in queries_and_keys(layer):
            pairs.copy_(pairs.flip(2))  # the two softmaxes of each head are swapped
    after = layer.attention_map(x)
    assert isinstance(before, Difference)
    assert isinstance(after, Difference)
    torch.testing.assert_close(after.second.materialize(), before.first.materialize())


@pytest.mark.parametrize("positions", ["none", "rotary", "alibi", "t5"])
def test_pruning_a_head_equals_zeroing_its_output(positions: Any) -> None:
    layer, x = make(24, positions=positions), tokens(24)
    pruned = prune_heads(layer, [1])
    torch.testing.assert_close(pruned.attention_weights(x), layer.attention_weights(x)[:, [0, 2]])
    with torch.no_grad():
        layer.output.weight[:, 8:16] = 0
    torch.testing.assert_close(pruned(x), layer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 6}, r"^embed_dim / num_heads \(5\) must be even: each head has two queries$"),
        ({"lambda_init": 1.0}, "^lambda_init must be at least 0 and below 1, not 1.0$"),
        ({"lambda_init": -0.1}, "^lambda_init must be at least 0 and below 1, not -0.1$"),
        ({"lambda_init": float("nan")}, "^lambda_init must be at least 0 and below 1, not nan$"),
        ({"positions": "rotary"}, "even"),
        ({"positions": Rotary(10)}, "10, not 5"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DifferentialAttention(D, **{"num_heads": H, **options})
