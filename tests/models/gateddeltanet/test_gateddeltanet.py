"""Gated DeltaNet: the worked example, the formula number by number, its options, and its initial values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_same, perturbed, random
from torch import Tensor

from attnlab.models.gateddeltanet import GatedDeltaNet

B, N, H, D, d, w = 2, 11, 3, 15, 5, 7


def made(**options: Any) -> GatedDeltaNet:
    torch.manual_seed(0)
    return perturbed(GatedDeltaNet(D, H, **options))


def three_tokens(decay: float, strength: float, **options: Any) -> Tensor:
    """The worked example: keys a, b, a and queries a; tokens 1 and 2 have these logits of the decay and of β."""
    layer = GatedDeltaNet(
        5, 1, key_dim=4, value_dim=1, short_conv=0, output_norm=False, output_gate="none", **options
    ).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        W_Q, W_K, W_V = layer.qkv.weight.split([4, 4, 1])
        W_Q[0, :2] = W_K[0, 0] = W_K[1, 1] = 100
        W_V[0, 2] = layer.step.weight[0, 3] = layer.strength.weight[0, 4] = 1
        layer.output.weight[0, 0] = 2  # queries are divided by √4
        x = torch.tensor([[[1, 0, 21, -40, 40], [0, 1, 42, decay, 40], [1, 0, 63, -40, strength]]]).double()
        return layer(x)[0, :, 0]


@pytest.mark.parametrize(
    ("decay", "strength", "options", "expected"),
    [
        (-40, 40, {}, [21, 21, 63]),
        (math.log(2), 0, {}, [21, 7, 35]),
        (-40, -40, {}, [21, 21, 21]),
        (-40, 0, {"allow_neg_eigval": True}, [42, 42, 63]),
        (-40, 40, {"allow_neg_eigval": True}, [42, 42, 84]),  # 2 · 63 less the value 42
    ],
    ids=["delta rule", "both gates", "no correction", "twice", "reversed"],
)
def test_the_worked_example(decay: float, strength: float, options: dict[str, Any], expected: list[float]) -> None:
    assert three_tokens(decay, strength, **options).tolist() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("allow_neg_eigval", [False, True])
@pytest.mark.parametrize("widths", [{}, {"key_dim": 2, "value_dim": w}], ids=["equal widths", "two widths"])
def test_a_loop_over_single_numbers(widths: dict[str, int], allow_neg_eigval: bool) -> None:
    layer = made(allow_neg_eigval=allow_neg_eigval, short_conv=3, **widths)
    x, key, value = random(B, N, D), widths.get("key_dim", d), widths.get("value_dim", d)
    projected, taps = layer.qkv(x).tolist(), layer.conv.weight.tolist()  # type: ignore[union-attr]
    heads = torch.zeros(B, N, H, value, dtype=torch.float64)

    def feature(b: int, t: int, channel: int) -> float:
        total = sum(taps[channel][j] * projected[b][t - j][channel] for j in range(3) if t >= j)
        return total / (1 + math.exp(-total))

    def unit(numbers: list[float]) -> list[float]:
        size = math.sqrt(sum(n * n for n in numbers) + 1e-6)
        return [n / size for n in numbers]

    for b in range(B):
        for h in range(H):
            S = [[0.0] * value for _ in range(key)]
            for t in range(N):
                q = unit([feature(b, t, h * key + i) for i in range(key)])
                k = unit([feature(b, t, H * key + h * key + i) for i in range(key)])
                v = [feature(b, t, 2 * H * key + h * value + j) for j in range(value)]
                rate = math.exp(layer.decay.log_rate[h]) * math.log1p(
                    math.exp(layer.step(x)[b, t, h] + layer.decay.offset[h])
                )
                beta = (2 if allow_neg_eigval else 1) / (1 + math.exp(-layer.strength(x)[b, t, h]))
                S = [[math.exp(-rate) * s for s in row] for row in S]
                held = [sum(k[i] * S[i][j] for i in range(key)) for j in range(value)]
                for i in range(key):
                    for j in range(value):
                        S[i][j] += beta * k[i] * (v[j] - held[j])
                for j in range(value):
                    heads[b, t, h, j] = sum(q[i] * S[i][j] for i in range(key)) / math.sqrt(key)
    heads = heads / (heads.square().mean(-1, keepdim=True) + 2**-17).sqrt() * layer.norm.weight  # type: ignore[union-attr]
    assert_same(layer(x), layer.output(heads.flatten(2) * F.silu(layer.gate(x))))  # type: ignore[misc]


def test_initial_decays() -> None:
    layer = GatedDeltaNet(1000, 1000)
    rate, step = layer.decay.log_rate.exp(), F.softplus(layer.decay.offset)
    assert 0 < rate.min() < 0.1
    assert 15.9 < rate.max() <= 16
    assert 1e-3 <= step.min() < 1.1e-3
    assert 0.09 < step.max() <= 0.1 + 1e-6
    assert step.log().median().item() == pytest.approx(math.log(1e-2), abs=0.2)  # uniform on a logarithmic scale
    before = layer.decay.log_rate.clone(), layer.decay.offset.clone()
    layer.reset_parameters()
    assert not torch.equal(before[0], layer.decay.log_rate)
    assert not torch.equal(before[1], layer.decay.offset)


def test_the_decay_is_computed_in_float32() -> None:
    """The parameters are rounded to bfloat16, but not exp(A) and its product with the step."""
    layer = GatedDeltaNet(D, H).bfloat16()
    x = random(B, N, D, dtype=torch.bfloat16)
    log_decay = layer._recurrence(x, *torch.zeros(3, B, H, N, d).bfloat16()).log_decay
    assert log_decay is not None
    step = F.softplus(layer.step(x).double() + layer.decay.offset.double())
    ratio = log_decay.mT.double() / (layer.decay.log_rate.double().exp() * step)
    assert_same(ratio, torch.full_like(ratio, -1.0), 1e-5)
