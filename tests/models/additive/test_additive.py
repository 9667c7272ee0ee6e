"""Additive attention: both ways to compute the scores."""

from __future__ import annotations

import pytest
import torch
from comparison import assert_same, perturbed, random

from attnlab.models.additive import AdditiveAttention
from attnlab.models.additive.additive import MAX_SEPARATED, can_separate, separated_scores

B, N, H, D, d = 2, 7, 3, 15, 5


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("scale", [0.01, 1.0, MAX_SEPARATED])
def test_separated_scores_are_those_of_the_tanh(dtype: torch.dtype, atol: float, scale: float) -> None:
    Q, K = (scale * random(B, H, n, d).clamp(-1, 1) for n in (N, 11))
    v = random(H, d)
    expected = torch.einsum("bhnmd,hd->bhnm", torch.tanh(Q.unsqueeze(3) + K.unsqueeze(2)), v)
    assert_same(separated_scores(Q.to(dtype), K.to(dtype), v.to(dtype)).double(), expected, atol)


@pytest.mark.parametrize(("scale", "separable"), [(1.0, True), (1e4, False)])
def test_output_without_gradients_matches_output_with_gradients(scale: float, separable: bool) -> None:
    layer, x = perturbed(AdditiveAttention(D, H, causal=True)), scale * random(B, N, D)
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
