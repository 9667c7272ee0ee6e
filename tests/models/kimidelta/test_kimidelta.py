"""Kimi Delta Attention: the worked example, a loop over the entries of the state, equal decays, and bad options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_same, perturbed, random

from attnlab.models.gateddeltanet import GatedDeltaNet
from attnlab.models.kimidelta import KimiDeltaAttention
from attnlab.nn.attention import UnsupportedError

B, N, H, D, d = 2, 11, 3, 15, 5


def made(**options: Any) -> KimiDeltaAttention:
    torch.manual_seed(0)
    return perturbed(KimiDeltaAttention(D, H, **options))


def three_tokens(alpha: tuple[float, float], beta: float) -> list[float]:
    """The sum of the two channels of the state: the keys e1, e2, e1 with the values 21, 42, 63."""
    layer = KimiDeltaAttention(4, 1, short_conv=0, output_norm=False, output_gate="none").double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        W_Q, W_K, W_V = layer.qkv.weight.chunk(3)  # views
        W_Q[0, 3] = W_Q[1, 3] = W_K[0, 1] = W_K[1, 2] = 400
        W_V[0, 0], layer.output.weight[0, 0] = 1, math.sqrt(8)  # q = (1, 1) / √2, divided by √4
        for channel, decay in enumerate(alpha):
            layer.decay.offset[channel] = math.log(math.expm1(-math.log(decay))) if decay < 1 else -100
        layer.strength.weight[0, 3] = math.log(beta / (1 - beta)) if beta < 1 else 100
        x = torch.tensor([[[21.0, 1, 0, 1], [42, 0, 1, 1], [63, 1, 0, 1]]], dtype=torch.float64)
        return layer(x)[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("alpha", "beta", "expected"),
    [
        ((1, 1), 1, [21, 63, 105]),
        ((1, 0.5), 1, [21, 63, 84]),
        ((0.5, 0.5), 1, [21, 52.5, 84]),
        ((1, 0.5), 0.5, [10.5, 31.5, 47.25]),
    ],
)
def test_the_worked_example(alpha: tuple[float, float], beta: float, expected: list[float]) -> None:
    assert three_tokens(alpha, beta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 2, "output_gate": "swish", "bias": True},
        {"short_conv": 0, "output_norm": False, "output_gate": "none"},
    ],
    ids=["default", "low rank", "bare"],
)
@torch.no_grad()
def test_a_loop_over_the_entries_of_the_state(options: dict[str, Any]) -> None:
    layer, x = made(**options), random(B, N, D)
    q, k, v = (part.unflatten(-1, (H, d)) for part in F.silu(_convolved(layer, layer.qkv(x))).chunk(3, -1))
    logits = layer.step(x) + layer.decay.offset
    out = torch.zeros(B, N, H, d, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            S = torch.zeros(d, d, dtype=torch.float64)
            for t in range(N):
                query, key = (part[b, t, h] / math.sqrt(part[b, t, h] @ part[b, t, h] + 1e-6) for part in (q, k))
                for i in range(d):  # each channel decays at its own rate
                    S[i] *= math.exp(-math.exp(layer.decay.log_rate[h]) * math.log1p(math.exp(logits[b, t, h * d + i])))
                error = v[b, t, h] - S.T @ key
                S += torch.sigmoid(layer.strength(x)[b, t, h]) * torch.outer(key, error)
                out[b, t, h] = S.T @ query / math.sqrt(d)
    if layer.norm is not None:
        out = F.rms_norm(out, (d,), layer.norm.weight, layer.norm.eps)
    out = out.flatten(2)
    if layer.gate is not None:
        out = out * (F.silu if layer.output_gate == "swish" else torch.sigmoid)(layer.gate(x))
    assert_same(layer(x), layer.output(out))


def _convolved(layer: KimiDeltaAttention, qkv: torch.Tensor) -> torch.Tensor:
    if layer.conv is None:
        return qkv
    weight = layer.conv.weight.flip(-1).unsqueeze(1)  # the last tap belongs to the current token
    padded = F.pad(qkv.mT, (weight.shape[-1] - 1, 0))
    return F.conv1d(padded, weight, groups=len(weight)).mT


@torch.no_grad()
def test_equal_decays_of_all_channels_give_gated_deltanet() -> None:
    layer, x = made(output_gate="none"), random(B, N, D)
    theirs = GatedDeltaNet(D, H, output_gate="none").double().eval()
    shared = {k: v for k, v in layer.state_dict().items() if k in theirs.state_dict() and k != "decay.offset"}
    theirs.load_state_dict(shared, strict=False)
    for part in (layer.step.up.weight, theirs.step.weight):
        part.zero_()
    theirs.decay.offset.copy_(torch.tensor([-1.0, 0, 1]))
    layer.decay.offset.copy_(theirs.decay.offset.repeat_interleave(d))
    assert_same(layer(x), theirs(x))
    layer.decay.offset[0] += 1
    assert (layer(x) - theirs(x)).abs().max() > 1e-3


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        KimiDeltaAttention(D, H, rank=0)
    with pytest.raises(ValueError, match="output_gate must be one of none, sigmoid, swish, not 'tanh'"):
        KimiDeltaAttention(D, H, output_gate="tanh")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"embed_dim \(15\) must be divisible by num_heads \(4\)"):
        KimiDeltaAttention(D, 4)
    with pytest.raises(UnsupportedError, match="is always causal"):
        KimiDeltaAttention(D, H, causal=False)
