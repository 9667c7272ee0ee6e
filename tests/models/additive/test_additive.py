"""Additive attention: the scores, their bound, both ways to compute them, and the options."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from comparison import assert_pruning_is_exact, assert_same, perturbed, random

from attnlab import check_attention, masks
from attnlab.models.additive import AdditiveAttention
from attnlab.models.additive.additive import MAX_SEPARATED, can_separate, separated_scores

B, N, H, D, d = 2, 7, 3, 15, 5


def layer_of(**options: Any) -> AdditiveAttention:
    return perturbed(AdditiveAttention(D, H, **options))


def test_parameter_count_exceeds_multi_head_attention_by_one_vector_per_head() -> None:
    assert sum(p.numel() for p in AdditiveAttention(D, H).parameters()) == 4 * D * (D + 1) + H * d


@pytest.mark.parametrize("causal", [True, False])
def test_zero_score_vector_gives_uniform_attention(causal: bool) -> None:
    layer = layer_of(causal=causal)
    with torch.no_grad():
        layer.score.zero_()
    allowed = torch.ones(N, N, dtype=torch.float64)
    allowed = allowed.tril() if causal else allowed
    assert_same(layer.attention_weights(random(B, N, D)), (allowed / allowed.sum(-1, keepdim=True)).expand(B, H, N, N))


def test_ratio_of_attention_weights_is_bounded() -> None:
    layer = layer_of()
    weights = layer.attention_weights(1e3 * random(B, N, D))
    bound = torch.exp(2 * layer.score.abs().sum(-1))
    assert (weights.amax(-1) / weights.amin(-1) <= bound[:, None] + 1e-9).all()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("scale", [0.01, 1.0, MAX_SEPARATED])
def test_separated_scores_are_those_of_the_tanh(dtype: torch.dtype, atol: float, scale: float) -> None:
    Q, K = (scale * random(B, H, n, d).clamp(-1, 1) for n in (N, 11))
    v = random(H, d)
    expected = torch.einsum("bhnmd,hd->bhnm", torch.tanh(Q.unsqueeze(3) + K.unsqueeze(2)), v)
    assert_same(separated_scores(Q.to(dtype), K.to(dtype), v.to(dtype)).double(), expected, atol)


@pytest.mark.parametrize(("scale", "separable"), [(1.0, True), (1e4, False)])
def test_output_without_gradients_matches_output_with_gradients(scale: float, separable: bool) -> None:
    layer, x = layer_of(causal=True), scale * random(B, N, D)
    with torch.no_grad():
        Q, K, _ = layer._project_qkv(x, None)
        assert can_separate(Q, K) is separable
        out = layer(x)
    assert not can_separate(Q, K), "a gradient may be needed"
    torch.testing.assert_close(out, layer(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), MAX_SEPARATED + 0.1])
@pytest.mark.parametrize("query", [True, False])
def test_values_out_of_range_are_not_separated(value: float, query: bool) -> None:
    Q, K = torch.zeros(1, 1, 3, d), torch.zeros(1, 1, 5, d)
    (Q if query else K)[0, 0, 2, 1] = value
    with torch.no_grad():
        assert not can_separate(Q, K)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["alibi", "t5"])
def test_conformance_with_positions(positions: str) -> None:
    check_attention(partial(AdditiveAttention, num_heads=2, positions=positions), fast=True)


@pytest.mark.parametrize("positions", ["none", "alibi", "t5"])
@pytest.mark.parametrize("pruned", [[0], [1], [0, 2]])
def test_pruning_is_exact(pruned: list[int], positions: Any) -> None:
    mask = masks.padding(torch.tensor([4, 7]))
    small = assert_pruning_is_exact(layer_of(positions=positions), pruned, random(B, N, D), mask=mask)
    assert small.score.shape == (H - len(pruned), d)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4}, r"^embed_dim \(15\) must be divisible by num_heads \(4\)"),
        ({"positions": "t5(buckets=1)"}, "buckets"),
        ({"dropout": -0.5}, "^dropout must be at least 0 and below 1, not -0.5$"),
        ({"positions": "rotary"}, "^rotary positions need a product of query and key, .*; use alibi or t5$"),
    ],
)
def test_invalid_options_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdditiveAttention(**{"embed_dim": 12 if "rotary" in str(options) else D, "num_heads": H, **options})
