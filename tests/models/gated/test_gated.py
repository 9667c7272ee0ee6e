"""Gated attention: equal to multi-head attention with open gates, and the effect of closed gates."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from comparison import assert_same, perturbed
from torch import Tensor

from attnlab import KVCache, check_attention, masks
from attnlab.models.gated import GatedAttention
from attnlab.models.multihead import MultiAttention
from attnlab.network.pruning import prune_heads

B, N, H, D, d = 2, 7, 3, 12, 4

GATES = pytest.mark.parametrize("gate", ["elementwise", "headwise"])


def made(**options: Any) -> GatedAttention:
    """A layer with parameters far from their initial values, which would hide mistakes."""
    torch.manual_seed(0)
    return perturbed(GatedAttention(D, H, **options))


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def set_gates(layer: GatedAttention, logit: float | Tensor) -> None:
    """The same gates for every token."""
    with torch.no_grad():
        layer.gate.projection.weight.zero_()
        layer.gate.projection.bias.copy_(torch.as_tensor(logit))


def multihead(layer: GatedAttention, **options: Any) -> MultiAttention:
    multi = MultiAttention(D, H, causal=layer.causal, **options).double().eval()
    multi.load_state_dict({name: part for name, part in layer.state_dict().items() if not name.startswith("gate")})
    return multi


@pytest.mark.parametrize("bias", [True, False])
def test_parameters(bias: bool) -> None:
    def count(gate: Any) -> int:
        return sum(parameter.numel() for parameter in GatedAttention(D, H, gate=gate, bias=bias).parameters())

    assert count("elementwise") == 5 * D * (D + bias)
    assert count("headwise") == (4 * D + H) * (D + bias)


@GATES
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_with_open_gates_it_equals_multi_head_attention(gate: Any, causal: bool, positions: Any) -> None:
    layer, x, mask = made(gate=gate, causal=causal, positions=positions), tokens(), masks.padding(torch.tensor([4, 7]))
    set_gates(layer, 50.0)
    multi = multihead(layer, positions=positions)
    assert_same(layer(x, mask=mask), multi(x, mask=mask))
    assert_same(layer.attention_weights(x), multi.attention_weights(x))


@GATES
def test_cross_attention_with_open_gates_equals_multi_head_attention(gate: Any) -> None:
    layer, x, context = made(gate=gate), tokens(), tokens(5)
    set_gates(layer, 50.0)
    assert_same(layer(x, context=context), multihead(layer)(x, context=context))


@GATES
def test_gate_logits_of_zero_halve_the_heads(gate: Any) -> None:
    layer, x = made(gate=gate), tokens()
    set_gates(layer, 0.0)
    b = layer.output.bias
    assert_same(layer(x) - b, (multihead(layer)(x) - b) / 2)


def test_closing_the_gate_of_a_head_equals_pruning_it() -> None:
    layer, x = made(gate="headwise"), tokens()
    set_gates(layer, torch.tensor([0.3, -800.0, -0.2]))
    assert_same(layer(x), prune_heads(layer, [1])(x))


def test_the_gate_depends_on_the_query_token() -> None:
    layer, x, context = made(), tokens(), tokens(5)
    before = layer(x, context=context)
    with torch.no_grad():  # closed by the first channel, which is positive for token 2 only
        layer.gate.projection.weight.zero_()
        layer.gate.projection.weight[:, 0] = -800
        x[:, :, 0] = -1
        x[:, 2, 0] = 1
    after = layer(x, context=context)
    assert_same(after[:, 2], layer.output.bias.expand(B, D))
    assert (after - layer.output.bias).abs()[:, [0, 1, 3, 4, 5, 6]].amin() > 1e-6
    assert before.shape == after.shape


def test_a_headwise_gate_equals_repeated_elementwise_gates() -> None:
    one, many, x = made(gate="headwise", causal=True), made(causal=True), tokens()
    state = one.state_dict()
    for name in ("gate.projection.weight", "gate.projection.bias"):
        state[name] = state[name].repeat_interleave(d, 0)
    many.load_state_dict(state)
    assert_same(one(x), many(x))


@GATES
@pytest.mark.parametrize("removed", [[0], [2, 1]])
@pytest.mark.parametrize("positions", ["none", "rotary", "alibi"])
def test_pruning_is_exact(gate: Any, removed: list[int], positions: Any) -> None:
    layer, x = made(gate=gate, causal=True, positions=positions), tokens()
    small = prune_heads(layer, removed)
    assert small.gate.projection.weight.shape[0] == (H - len(removed)) * (d if gate == "elementwise" else 1)
    with torch.no_grad():
        for head in removed:
            layer.output.weight[:, head * d : (head + 1) * d] = 0
    assert_same(small(x), layer(x))


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["rotary", "t5"])
def test_every_check_passes_with_positions(positions: str) -> None:
    check_attention(partial(GatedAttention, num_heads=2, positions=positions), fast=True)


@GATES
def test_cached_steps_match_the_full_pass(gate: Any) -> None:
    layer, x, cache = made(gate=gate, causal=True, positions="rotary"), tokens(), KVCache(N)
    with torch.no_grad():
        assert_same(torch.cat([layer(part, cache=cache) for part in x.split([3, 1, 3], 1)], 1), layer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "scalar"}, "^gate must be 'elementwise' or 'headwise', not 'scalar'$"),
        ({"gate": True}, "^gate must be 'elementwise' or 'headwise', not True$"),
        ({"num_heads": 5}, r"^embed_dim \(12\) must be divisible by num_heads \(5\)"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GatedAttention(D, **{"num_heads": H, **options})
