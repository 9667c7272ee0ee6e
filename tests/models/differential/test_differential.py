"""Differential attention: the difference of the two softmaxes."""

from __future__ import annotations

import torch
from comparison import assert_same, perturbed, random

from attnlab import masks
from attnlab.models.differential import DifferentialAttention
from attnlab.ops.softmax import softmax_weights

B, N, H, D, d = 2, 7, 3, 30, 5


def test_lambda_zero_leaves_the_first_softmax() -> None:
    layer, x = perturbed(DifferentialAttention(D, H, lambda_init=0.0, causal=True)), random(B, N, D)
    with torch.no_grad():
        layer.lambda_qk.zero_()  # λ = exp(0) - exp(0)
    Q, K, _ = (part.unflatten(-1, (H, 2, d))[..., 0, :].transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    expected = softmax_weights(Q, K, masks.causal().bind(N, N, shape=(B, H)))
    assert_same(layer.attention_weights(x), expected)


def test_rows_of_two_equal_softmaxes_sum_to_one_minus_lambda() -> None:
    layer = perturbed(DifferentialAttention(D, H))
    with torch.no_grad():
        for part in (layer.qkv.weight, layer.qkv.bias):
            queries_and_keys = part.unflatten(0, (3, H, 2, d))[:2]
            queries_and_keys[:, :, 1] = queries_and_keys[:, :, 0]
    q1, k1, q2, k2 = layer.lambda_qk.detach()
    expected = 1 - (torch.exp(q1 @ k1) - torch.exp(q2 @ k2) + layer.lambda_init)
    assert_same(layer.attention_weights(random(B, N, D)).sum(-1), expected.expand(B, H, N))
