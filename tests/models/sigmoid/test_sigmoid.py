"""Sigmoid attention: its softmax limit, and the count of permitted keys in low precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import CAUSAL, perturbed, random

from attnlab.models.multihead import MultiAttention
from attnlab.models.sigmoid import SigmoidAttention
from attnlab.models.sigmoid.sigmoid import sigmoid_weights

B, N, H, D = 2, 7, 3, 12


@CAUSAL
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_normalized_attention_weights_of_low_scores_are_a_softmax(causal: bool, positions: Any) -> None:
    layer, x = perturbed(SigmoidAttention(D, H, causal=causal, positions=positions)), random(B, N, D)
    multihead = MultiAttention(D, H, causal=causal, positions=positions).double()
    multihead.load_state_dict(layer.state_dict())
    low = layer.attention_weights(x, attn_bias=torch.full((N, N), -40.0, dtype=torch.float64))
    torch.testing.assert_close(low / low.sum(-1, keepdim=True), multihead.attention_weights(x))


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
    layer, x = perturbed(SigmoidAttention(D, H, causal=True)), random(1, 3, D).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: layer(x).tanh(), x)
