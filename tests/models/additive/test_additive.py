"""Additive attention: what its scores are without a hidden layer's answer, and its options."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import KVCache, check_attention, masks
from attnlab.models.additive import AdditiveAttention
from attnlab.nn.pruning import prune_heads

B, N, H, D, d = 2, 7, 3, 15, 5


def made(**options: Any) -> AdditiveAttention:
    """A layer whose parameters are moved off where they start, where they would hide a mistake."""
    torch.manual_seed(0)
    layer = AdditiveAttention(D, H, **options).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_vector_a_head_is_all_that_is_new() -> None:
    count = sum(parameter.numel() for parameter in AdditiveAttention(D, H).parameters())
    assert count == 4 * D * (D + 1) + H * d


@pytest.mark.parametrize("causal", [True, False])
def test_scores_of_zero_are_the_plain_average(causal: bool) -> None:
    layer, x = made(causal=causal), tokens()
    with torch.no_grad():
        layer.score.zero_()
    seen = torch.ones(N, N, dtype=torch.float64)
    seen = seen.tril() if causal else seen
    same(layer.attention_weights(x), (seen / seen.sum(-1, keepdim=True)).expand(B, H, N, N))


def test_a_score_cannot_pass_the_sum_of_the_vector() -> None:
    layer, x = made(), 1e3 * tokens()
    ratios = layer.attention_weights(x)
    most = torch.exp(2 * layer.score.abs().sum(-1))
    assert (ratios.amax(-1) / ratios.amin(-1) <= most[:, None] + 1e-9).all()


@pytest.mark.parametrize("positions", ["alibi", "t5"])
def test_positions_keep_every_promise(positions: str) -> None:
    check_attention(partial(AdditiveAttention, num_heads=2, positions=positions), fast=True)


def test_steps_are_the_whole() -> None:
    layer, x, cache = made(causal=True, positions="alibi"), tokens(), KVCache(N)
    with torch.no_grad():
        same(torch.cat([layer(part, cache=cache) for part in x.split([3, 1, 3], 1)], 1), layer(x))


@pytest.mark.parametrize("positions", ["none", "alibi", "t5"])
@pytest.mark.parametrize("gone", [[0], [1], [0, 2]])
def test_a_head_that_goes_takes_its_vector(gone: list[int], positions: Any) -> None:
    layer, x, mask = made(positions=positions), tokens(), masks.padding(torch.tensor([4, 7]))
    small = prune_heads(layer, gone)
    left = [head for head in range(H) if head not in gone]
    assert small.score.shape == (len(left), d)
    same(small.attention_weights(x, mask=mask), layer.attention_weights(x, mask=mask)[:, left])
    with torch.no_grad():
        for head in gone:
            layer.output.weight[:, head * d : (head + 1) * d] = 0
    same(small(x, mask=mask), layer(x, mask=mask))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_heads": 4}, r"^embed_dim \(15\) must be divisible by num_heads \(4\)"),
        ({"positions": "t5(buckets=1)"}, "buckets"),
        ({"dropout": -0.5}, "^dropout must be at least 0 and below 1, not -0.5$"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AdditiveAttention(D, **{"num_heads": H, **options})


def test_there_is_nothing_to_turn() -> None:
    with pytest.raises(
        ValueError, match=r"^rotary positions turn what is multiplied, and here .* are added; take alibi$"
    ):
        AdditiveAttention(12, 3, positions="rotary")
