"""Mamba-2: the worked example, the formula number by number, groups, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import assert_same, perturbed, random

from attnlab.models.mamba2 import Mamba2
from attnlab.nn.attention import UnsupportedError

B, N, D, H, s = 2, 5, 6, 4, 3
w = 2 * D // H


def made(**options: Any) -> Mamba2:
    torch.manual_seed(0)
    return perturbed(Mamba2(D, H, state_size=s, **options))


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ((0, 0, 0), [21, 52.5, 89.25]),
        ((0, -40, 0), [21, 21, 73.5]),
        ((0, math.log(3), 0), [21, 89.25, 107.625]),
        ((0, -40, -40), [21, 21, 21]),
    ],
    ids=["halved", "skipped", "a large step", "kept"],
)
def test_the_worked_example(inputs: tuple[float, ...], expected: list[float]) -> None:
    layer = Mamba2(4, 1, state_size=1, expand=1, short_conv=0).double()
    x = torch.tensor([[[v, y, 1, 0] for v, y in zip((21, 42, 63), inputs, strict=True)]]).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.qkv.weight[0, 2] = layer.qkv.weight[1, 2] = 100
        layer.step.weight[0, 1] = 1
        out = layer.attention_map(x).apply(x[:, None, :, :1]) / 100**2 / math.log(2)
    assert out.flatten().tolist() == pytest.approx(expected)


@torch.no_grad()
@pytest.mark.parametrize("num_groups", [1, 2])
def test_a_loop_over_single_numbers(num_groups: int) -> None:
    layer, x = made(num_groups=num_groups, short_conv=2), random(B, N, D)
    u, taps, offsets = layer.qkv(x).tolist(), layer.conv.weight.tolist(), layer.conv.bias.tolist()  # type: ignore[union-attr]
    steps, rates, heads = layer.step(x).tolist(), layer.decay.log_rate.exp().tolist(), torch.zeros(B, N, H, w).double()
    shared = num_groups * s

    def feature(b: int, t: int, c: int) -> float:
        total = offsets[c] + sum(taps[c][j] * u[b][t - j][c] for j in range(2) if t >= j)
        return total / (1 + math.exp(-total))

    for b in range(B):
        for h in range(H):
            state, group = [[0.0] * w for _ in range(s)], h // (H // num_groups)
            for t in range(N):
                delta = math.log1p(math.exp(steps[b][t][h] + float(layer.decay.offset[h])))
                C = [feature(b, t, group * s + i) for i in range(s)]
                keys = [feature(b, t, shared + group * s + i) for i in range(s)]
                values = [feature(b, t, 2 * shared + h * w + j) for j in range(w)]
                for i in range(s):
                    for j in range(w):
                        state[i][j] = math.exp(-rates[h] * delta) * state[i][j] + delta * keys[i] * values[j]
                for j in range(w):
                    read = sum(C[i] * state[i][j] for i in range(s))
                    heads[b, t, h, j] = read + float(layer.skip[h]) * values[j]
    gated = heads.flatten(2) * torch.nn.functional.silu(layer.z(x))
    norm = (gated.square().mean(-1, keepdim=True) + 2**-17).rsqrt() * layer.inner_norm.weight
    assert_same(layer(x), layer.output(gated * norm))


def test_the_skip_is_the_diagonal_of_the_weights() -> None:
    layer, x = made(), random(B, N, D)
    before = layer.attention_weights(x)
    with torch.no_grad():
        layer.skip += torch.arange(1.0, H + 1)
    change = torch.diag_embed(torch.arange(1.0, H + 1).double()[:, None].expand(B, H, N))
    assert_same(layer.attention_weights(x) - before, change)


def test_initial_values_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    layer = Mamba2(64, 64)
    step = torch.nn.functional.softplus(layer.decay.offset)
    assert 1e-3 <= step.min() < 3e-3
    assert 3e-2 < step.max() <= 1e-1
    assert 1 <= layer.decay.log_rate.exp().min() < 3
    assert 14 < layer.decay.log_rate.exp().max() <= 16
    assert (layer.skip == 1).all()


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_heads \(5\) must divide expand \* embed_dim \(12\)"):
        Mamba2(6, 5)
    with pytest.raises(ValueError, match=r"num_kv_heads \(3\) must divide num_heads \(4\)|num_groups \(3\)"):
        Mamba2(6, 4, num_groups=3)
    with pytest.raises(ValueError, match="state_size"):
        Mamba2(6, 4, state_size=0)
    with pytest.raises(UnsupportedError, match="Mamba2 normalizes all heads together"):
        made().keep_heads([0, 1])
