"""Gated linear attention: the worked example, the gates, strong gates, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import assert_same, perturbed, random

from attnlab.models.gatedlinear import GatedLinearAttention
from attnlab.models.gatedlinear.reference import reference
from attnlab.nn.attention import UnsupportedError

B, N, H, d, D = 2, 11, 3, 5, 21


def made(**options: Any) -> GatedLinearAttention:
    torch.manual_seed(0)
    return perturbed(GatedLinearAttention(D, H, key_dim=d, decay_rank=2, **options))


def by_hand() -> GatedLinearAttention:
    """Channel 0 is kept unless a token closes it, channel 1 is halved by every token."""
    layer = GatedLinearAttention(
        4, 1, key_dim=4, decay_rank=1, decay_temperature=1, output_norm=False, output_gate="none"
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        W_Q, W_K, W_V = layer.qkv.weight.split(4)
        W_Q[:2, 2], W_K[0, 2], W_K[1, 1], W_V[0, 0] = 2, 1, 1, 1
        layer.decay.down.weight[0, 3], layer.decay.up.weight[0, 0], layer.decay.up.bias[0] = 1, -80, 40
        layer.output.weight[0, 0] = 1
    return layer


@pytest.mark.parametrize(("closed", "expected"), [(0.0, [105, 189, 252]), (1.0, [105, 189, 189])])
def test_the_worked_example(closed: float, expected: list[float]) -> None:
    x = torch.tensor([[[21.0, 4, 1, 0], [42, 2, 1, 0], [63, 1, 1, closed]]])
    assert by_hand()(x)[0, :, 0].tolist() == pytest.approx(expected)
    assert by_hand().attention_weights(x)[0, 0, 2].tolist() == pytest.approx([2 - closed, 2 - closed, 2])


def test_a_loop_over_channels() -> None:
    layer, x = made(output_norm=False, output_gate="none"), random(B, N, D)
    gates = (x @ layer.decay.down.weight.T @ layer.decay.up.weight.T + layer.decay.up.bias).tolist()
    qkv, w, out = layer.qkv(x), D // H, torch.zeros(B, N, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for c in range(h * d, h * d + d):
                row = torch.zeros(w, dtype=torch.float64)
                for t in range(N):
                    alpha = (1 / (1 + math.exp(-gates[b][t][c]))) ** (1 / 16)
                    value = qkv[b, t, 2 * H * d + h * w : 2 * H * d + h * w + w]
                    row = alpha * row + qkv[b, t, H * d + c] * value
                    out[b, t, h * w : h * w + w] += qkv[b, t, c] * row / d**0.5
    assert_same(layer(x), layer.output(out))


def test_gates_start_near_one() -> None:
    """A gate whose input is 0 is (1/2)^(1/16): half of a state is left after 16 tokens."""
    layer = made()
    torch.nn.init.zeros_(layer.decay.up.weight)
    layer.reset_parameters()
    assert layer.decay.up.bias.eq(0).all()
    assert layer.decay.up.weight.std() > 0.1
    torch.nn.init.zeros_(layer.decay.up.weight)
    weights = layer.attention_weights(random(1, 1, D).expand(1, 17, D))
    assert_same(weights[0, :, 16, 0], weights[0, :, 16, 16] / 2)


@pytest.mark.parametrize("bias", [-3000.0, -60.0, 60.0])
def test_gates_near_zero_and_one(bias: float) -> None:
    layer, x = made(), random(B, 131, D).requires_grad_()
    torch.nn.init.constant_(layer.decay.up.bias[:d], bias)
    assert_same(layer(x), reference(layer, x))
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert gradient.isfinite().all()


def test_a_selected_head_keeps_its_gates() -> None:
    layer, x = made(), random(B, N, D)
    kept = layer.keep_heads([1])
    assert_same(kept.attention_weights(x)[:, 0], layer.attention_weights(x)[:, 1])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="GatedLinearAttention is always causal"):
        GatedLinearAttention(D, H, causal=False)
    for temperature in (0, math.nan):
        with pytest.raises(ValueError, match="decay_temperature must be above 0, not"):
            GatedLinearAttention(D, H, decay_temperature=temperature)
    with pytest.raises(ValueError, match="decay_rank must be at least 1, not 0"):
        GatedLinearAttention(D, H, decay_rank=0)
    assert GatedLinearAttention(D, H).key_dim == 4  # half of 7, rounded up
