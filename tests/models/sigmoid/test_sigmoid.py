"""Sigmoid attention: independent attention weights, their softmax limit, and the count of permitted keys."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from comparison import assert_pruning_is_exact, assert_same, perturbed, random

from attnlab import check_attention, masks
from attnlab.models.multihead import MultiAttention
from attnlab.models.sigmoid import SigmoidAttention
from attnlab.models.sigmoid.sigmoid import sigmoid_weights

B, N, H, D = 2, 7, 3, 12


def layer_of(**options: Any) -> SigmoidAttention:
    return perturbed(SigmoidAttention(D, H, **options))


def test_state_dict_is_that_of_multi_head_attention() -> None:
    MultiAttention(D, H).load_state_dict(SigmoidAttention(D, H).state_dict())


def test_attention_weights_of_keys_are_independent() -> None:
    layer, x, bias = layer_of(), random(B, N, D), torch.zeros(N, N, dtype=torch.float64)
    before = layer.attention_weights(x, attn_bias=bias)
    bias[:, 2] = 3
    after, others = layer.attention_weights(x, attn_bias=bias), [0, 1, 3, 4, 5, 6]
    assert torch.equal(after[..., others], before[..., others])
    assert (after[..., 2] > before[..., 2]).all()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_normalized_attention_weights_of_low_scores_are_a_softmax(causal: bool, positions: Any) -> None:
    layer, x = layer_of(causal=causal, positions=positions), random(B, N, D)
    multihead = MultiAttention(D, H, causal=causal, positions=positions).double()
    multihead.load_state_dict(layer.state_dict())
    low = layer.attention_weights(x, attn_bias=torch.full((N, N), -40.0, dtype=torch.float64))
    torch.testing.assert_close(low / low.sum(-1, keepdim=True), multihead.attention_weights(x))


def test_scores_of_zero_give_weights_of_one_over_n_plus_one() -> None:
    layer = layer_of(causal=True)
    with torch.no_grad():
        layer.qkv.weight[:D].zero_()
        layer.qkv.bias[:D].zero_()
    expected = 1 / (torch.arange(N, dtype=torch.float64) + 2)
    assert_same(layer.attention_weights(random(B, N, D)), expected[:, None].expand(N, N).tril().expand(B, H, N, N))


def test_masked_keys_are_not_counted() -> None:
    layer, x, mask = layer_of(), random(B, N, D), masks.padding(torch.tensor([4, 4]))
    for form in (mask, mask.materialize(N).expand(B, 1, N, N)):
        assert_same(layer(x, mask=form)[:, :4], layer(x[:, :4]))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [1031, 70_001])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_counts_any_number_of_keys(dtype: torch.dtype, keys: int, masked: bool) -> None:
    scores = torch.tensor([[2.0, 7.0]]).repeat(1, keys)[None, None, :, :keys].to(dtype)
    permitted = torch.ones(1, 1, 1, keys, dtype=torch.bool) if masked else None
    expected = torch.sigmoid(scores.double() - math.log(keys))
    torch.testing.assert_close(sigmoid_weights(scores, permitted).double(), expected, rtol=0.004, atol=1e-7)


def test_masked_scores_of_any_size_give_zero_weights_and_gradients() -> None:
    scores = torch.tensor([[[[1e38, 0.5, -torch.inf]]]], requires_grad=True)
    weights = sigmoid_weights(scores, torch.tensor([[[[False, True, False]]]]))
    weights.sum().backward()
    assert scores.grad is not None
    assert weights.tolist()[0][0][0][::2] == scores.grad.tolist()[0][0][0][::2] == [0, 0]


def test_second_derivatives_are_exact_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**5)
    layer, x = layer_of(causal=True), random(1, 3, D).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: layer(x).tanh(), x)


@pytest.mark.parametrize("pruned", [[0], [2, 1]])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_pruning_is_exact(pruned: list[int], positions: Any) -> None:
    assert_pruning_is_exact(layer_of(causal=True, positions=positions), pruned, random(B, N, D))


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["rotary", "t5"])
def test_conformance_with_positions(positions: str) -> None:
    check_attention(partial(SigmoidAttention, num_heads=2, positions=positions), fast=True)
