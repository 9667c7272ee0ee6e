"""RWKV-7: the worked example, a loop over the entries of the state, the token shift, and bad options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comparison import assert_same, perturbed, random

from attnlab import masks
from attnlab.models.rwkv7 import RWKV7
from attnlab.models.rwkv7.rwkv7 import LARGEST_RATE
from attnlab.nn.attention import UnsupportedError
from attnlab.ops.scan.sequences import Sequences

B, N, H, D, d = 2, 11, 3, 15, 5


def made(**options: Any) -> RWKV7:
    torch.manual_seed(0)
    return perturbed(RWKV7(D, H, **options))


def three_tokens(
    rate: float, alpha: float = 1.0, shift: float = 0.0, rho: float = 0.0, sigma: float = 0.0
) -> list[float]:
    """The outputs for the values 21, 42, 63 under the same key; ``sigma`` is the sigmoid in the decay."""
    layer = RWKV7(4, 1, output_norm=False).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.shift[2] = shift
        layer.receptance.weight[0, 1] = layer.key.weight[0, 1] = 1
        layer.value.weight[0, 0] = layer.output.weight[0, 0] = 1
        layer.head_gate.up.weight[0, 0] = 2
        for part, value in ((layer.decay, sigma), (layer.rate, rate)):
            part.up.bias.fill_(math.log(value / (1 - value)) if 0 < value < 1 else 200 * value - 100)
        layer.removal.fill_(1000)
        layer.replacement.fill_(alpha)
        layer.bonus.fill_(rho)
        x = torch.tensor([[[21.0, 1, 0, 0], [42, 1, 0, 0], [63, 1, 0, 0]]], dtype=torch.float64)
        return layer(x)[0, :, 0].tolist()


TWO_THIRDS = math.log(1.5) / LARGEST_RATE
"""The sigmoid that gives a decay of 2/3."""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rate": 1}, [21, 42, 63]),
        ({"rate": 0, "alpha": 0}, [21, 63, 126]),
        ({"rate": 0.5}, [10.5, 26.25, 44.625]),
        ({"rate": 0.5, "alpha": 0}, [21, 52.5, 89.25]),
        ({"rate": 1, "shift": 0.5}, [10.5, 31.5, 52.5]),
        ({"rate": 1, "rho": 1}, [42, 84, 126]),
        ({"rate": 1, "sigma": TWO_THIRDS}, [21, 35, 63 - 35 / 3]),  # the state is read before it decays
    ],
)
def test_the_worked_example(options: dict[str, float], expected: list[float]) -> None:
    assert three_tokens(**options) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"rank": 2, "bias": True, "output_norm": False}], ids=["default", "bare"])
@torch.no_grad()
def test_a_loop_over_the_entries_of_the_state(options: dict[str, Any]) -> None:
    """The formulas of the paper, one number at a time."""
    layer, x = made(**options), random(B, N, D)
    out = torch.zeros(B, N, D, dtype=torch.float64)
    for b in range(B):
        S = torch.zeros(H, d, d, dtype=torch.float64)  # rows are channels of the key
        for t in range(N):
            before = x[b, t - 1] if t else torch.zeros(D, dtype=torch.float64)
            x_r, x_k, x_v, x_w, x_a, x_g = ((1 - part) * x[b, t] + part * before for part in layer.shift)
            r, k, v = layer.receptance(x_r), layer.key(x_k), layer.value(x_v)
            w = torch.exp(-LARGEST_RATE * torch.sigmoid(layer.decay.up(torch.tanh(layer.decay.down(x_w)))))
            a = torch.sigmoid(layer.rate.up(layer.rate.down(x_a)))
            g = layer.head_gate.up(torch.sigmoid(layer.head_gate.down(x_g)))
            for h in range(H):
                part = slice(h * d, h * d + d)
                kappa = k[part] * layer.removal[part]
                kappa = kappa / math.sqrt(kappa @ kappa + 1e-6)
                new = k[part] * (1 - layer.replacement[part] + layer.replacement[part] * a[part])
                held = kappa @ S[h]
                for i in range(d):
                    S[h, i] = w[part][i] * S[h, i] - a[part][i] * kappa[i] * held + new[i] * v[part]
                head, norm = r[part] @ S[h], layer.head_norm
                if norm is not None:
                    head = F.layer_norm(head, (d,), norm.weight[part], norm.bias[part], norm.eps)
                bonus = sum(r[part] * layer.bonus[part] * new)
                out[b, t, part] = g[part] * (head + bonus * v[part])
    assert_same(layer(x), layer.output(out), 1e-11)


@torch.no_grad()
def test_the_previous_token_is_that_of_the_document() -> None:
    """The shift alone reaches other tokens: the receptance is zero, so that nothing is read from the state."""
    layer, x = made(), random(B, N, D)
    layer.receptance.weight.zero_()
    changed = x.clone()
    changed[:, 4] += 1
    reached = ((layer(changed) - layer(x)).abs().amax((0, 2)) > 1e-9).nonzero().flatten().tolist()
    assert reached == [4, 5]
    mask = masks.documents(torch.tensor([0] * 5 + [1] * (N - 5)))
    reached = (layer(changed, mask=mask) - layer(x, mask=mask)).abs().amax((0, 2)) > 1e-9
    assert reached.nonzero().flatten().tolist() == [4]
    padded = masks.padding(torch.tensor([N, N - 4]), side="left", max_length=N)
    assert_same(layer(x, mask=padded)[1, 4:], layer(x[1:, 4:])[0])


@torch.no_grad()
def test_decoding_keeps_the_last_token_of_the_document() -> None:
    layer, x = made(), random(B, N, D)
    for mask in (None, masks.documents(torch.tensor([0] * 5 + [1] * (N - 5)))):
        cache = layer.make_cache(N)
        steps = [layer(part, mask=mask, cache=cache) for part in x.split([5, 1, 1, N - 7], 1)]
        assert_same(torch.cat(steps, 1), layer(x, mask=mask))
        state, last = cache.state
        assert state.shape == (B, H, d, d)
        assert_same(last, x[:, -1:])


@torch.no_grad()
def test_fewer_heads_are_those_heads() -> None:
    layer, x = made(bias=True), random(B, N, D)
    kept = layer.keep_heads([2, 0])
    others = [i for i in range(D) if i // d == 1]
    layer.output.weight[:, others] = 0
    assert_same(kept(x), layer(x))


def test_the_initial_values() -> None:
    layer = RWKV7(24, 3)
    x = torch.randn(1, 7, 24)
    inputs, _ = layer._project(x, Sequences(None, 7))
    assert inputs.log_decay is not None
    decay = inputs.log_decay.exp()
    assert (decay[:, :, 1:] == decay[:, :, :1]).all(), "the decays do not depend on the token"
    assert decay.min() > math.exp(-LARGEST_RATE)
    assert decay.max() < 1
    assert layer.shift[:, 0].tolist() == [1] * 6
    assert RWKV7(3, 3).shift.isfinite().all(), "a head of one channel"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        RWKV7(D, H, rank=0)
    with pytest.raises(ValueError, match=r"embed_dim \(15\) must be divisible by num_heads \(4\)"):
        RWKV7(D, 4)
    with pytest.raises(UnsupportedError, match="is always causal"):
        RWKV7(D, H, causal=False)
