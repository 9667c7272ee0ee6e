"""DeltaNet: the worked example, the triangular system of the paper, and what β does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_same, perturbed, random

from attnlab.models.deltanet import DeltaNet
from attnlab.models.gateddeltanet import GatedDeltaNet

B, N, H, D, d, w = 2, 11, 3, 15, 5, 7


def made(**options: Any) -> DeltaNet:
    torch.manual_seed(0)
    return perturbed(DeltaNet(D, H, **options))


def three_tokens(keys: str, strength: float) -> list[float]:
    """The worked example: queries a; token 2 has this logit of β, the others have β = 1."""
    layer = DeltaNet(4, 1, key_dim=4, value_dim=1, short_conv=0, output_norm=False).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        W_Q, W_K, W_V = layer.qkv.weight.split([4, 4, 1])
        W_Q[0, :2] = W_K[0, 0] = W_K[1, 1] = 100
        W_V[0, 2] = layer.strength.weight[0, 3] = 1
        layer.output.weight[0, 0] = 2  # queries are divided by √4
        tokens = [[key == "a", key == "b", value, 40] for key, value in zip(keys, (21, 42, 63), strict=True)]
        tokens[2][3] = strength
        return layer(torch.tensor([tokens]).double())[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("keys", "strength", "expected"),
    [("aba", 40, [21, 21, 63]), ("aba", 0, [21, 21, 42]), ("aba", -40, [21, 21, 21]), ("aaa", 40, [21, 42, 63])],
)
def test_the_worked_example(keys: str, strength: float, expected: list[float]) -> None:
    assert three_tokens(keys, strength) == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("allow_neg_eigval", [False, True])
@pytest.mark.parametrize("widths", [{}, {"key_dim": 2, "value_dim": w}], ids=["equal widths", "two widths"])
def test_the_triangular_system_of_the_paper(widths: dict[str, int], allow_neg_eigval: bool) -> None:
    """``O = (Q Kᵀ ⊙ M) (I + tril(diag(β) K Kᵀ, -1))⁻¹ diag(β) V`` (Yang et al. 2024, section 3.2), number by number."""
    layer = made(allow_neg_eigval=allow_neg_eigval, short_conv=3, output_gate="sigmoid", **widths)
    x, key, value = random(B, N, D), widths.get("key_dim", d), widths.get("value_dim", d)
    assert layer.conv is not None
    assert layer.norm is not None
    assert layer.gate is not None
    taps, heads = layer.conv.weight.flip(1).unsqueeze(1), torch.zeros(B, N, H, value).double()
    projected = F.conv1d(F.pad(layer.qkv(x).mT, (2, 0)), taps, groups=taps.shape[0]).mT
    features = projected * projected.sigmoid()
    for b in range(B):
        for h in range(H):
            q, k = (features[b, :, (part * H + h) * key :][:, :key] for part in range(2))
            v = features[b, :, 2 * H * key + h * value :][:, :value]
            q, k = (rows / (rows.square().sum(-1, keepdim=True) + 1e-6).sqrt() for rows in (q, k))
            beta = [1 / (1 + math.exp(-logit)) * (2 if allow_neg_eigval else 1) for logit in layer.strength(x)[b, :, h]]
            u: list[torch.Tensor] = []
            for t in range(N):
                held = sum((k[t] @ k[s] * u[s] for s in range(t)), torch.zeros(value).double())
                u.append(beta[t] * (v[t] - held))
                heads[b, t, h] = sum(q[t] @ k[s] * u[s] for s in range(t + 1)) / math.sqrt(key)
    heads = heads / (heads.square().mean(-1, keepdim=True) + 2**-17).sqrt() * layer.norm.weight
    assert_same(layer(x), layer.output(heads.flatten(2) * layer.gate(x).sigmoid()))


@torch.no_grad()
def test_gated_deltanet_without_decay_is_deltanet() -> None:
    layer = made()
    gated = GatedDeltaNet(D, H, output_gate="none").double()
    gated.load_state_dict(layer.state_dict(), strict=False)
    gated.step.weight.zero_()
    gated.decay.offset.fill_(-100.0)
    assert_same(gated(random(B, N, D)), layer(random(B, N, D)))
    gated.decay.offset.fill_(-2.0)
    assert (gated(random(B, N, D)) - layer(random(B, N, D))).abs().max() > 0.1


@torch.no_grad()
def test_orthogonal_keys_hold_exact_values_and_the_state_stays_bounded() -> None:
    layer = made(short_conv=0, output_norm=False)
    k = torch.eye(d).double().expand(B, H, d, d)
    x, v = random(B, d, D), random(B, H, d, d).exp() + 3  # SiLU changes little
    layer.strength.weight.zero_()
    q, k, v, _, beta, *_ = layer._recurrence(x, 100 * k, 100 * k, v)
    assert beta is not None
    assert_same(beta, torch.full((B, H, d), 0.5).double())
    assert_same(k, torch.eye(d).double().expand(B, H, d, d), 1e-9)
    assert_same(q, k / math.sqrt(d))
    cache = layer.make_cache(1)
    layer(random(B, 1009, D, scale=30), cache=cache)
    assert cache.state[0].norm(dim=2).max() < 1e3
