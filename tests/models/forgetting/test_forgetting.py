"""Forgetting attention: the initial gates, the forms of the decay, precision, memory and derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import assert_same, assert_same_gradients, perturbed, random
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnlab import KVCache, masks
from attnlab.models.forgetting import ForgettingAttention
from attnlab.models.forgetting.reference import reference
from attnlab.ops.decayed import DecayedMap

B, N, H, D = 2, 11, 3, 12


def make(**options: Any) -> ForgettingAttention:
    """A layer with gates near 1/2."""
    torch.manual_seed(0)
    return perturbed(ForgettingAttention(D, H, **{"forget_bias_init": 0.0, **options}))


def tokens(length: int = N) -> Tensor:
    return random(B, length, D)


def test_gates_start_open_and_are_reset() -> None:
    for options, expected in (({}, 4.0), ({"forget_bias_init": -1.5}, -1.5)):
        layer = ForgettingAttention(D, H, **options)
        assert layer.forget.bias.tolist() == [expected] * H
        torch.nn.init.zeros_(layer.forget.bias)
        layer.reset_parameters()
        assert layer.forget.bias.tolist() == [expected] * H


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize(
    "mask",
    [
        masks.causal(),
        masks.causal() & masks.sliding_window(4),
        masks.causal() & masks.padding(torch.tensor([7, 11])),
        masks.causal() & masks.padding(torch.tensor([7, 11]), side="left", max_length=N),
    ],
    ids=str,
)
def test_the_contiguous_form_equals_the_form_for_any_mask(mask: masks.Mask, positions: Any) -> None:
    layer, x = make(positions=positions), tokens()
    matrix = masks.from_tensor(mask.materialize(N).expand(B, 1, N, N))
    bound = mask.bind(N, N, shape=(B, H))
    assert bound.is_causal_and_contiguous
    assert not matrix.bind(N, N, shape=(B, H)).is_causal_and_contiguous
    assert_same(layer(x, mask=mask), layer(x, mask=matrix))
    assert_same(layer.attention_weights(x, mask=mask), layer.attention_weights(x, mask=matrix))


@torch.no_grad()
def test_cached_steps_under_a_mask_with_gaps_match_the_full_pass() -> None:
    layer, x, cache = make(causal=True, positions="rotary"), tokens(), KVCache(N)
    allowed = torch.rand(N, N, generator=torch.Generator().manual_seed(0)) < 0.6
    cuts = [(0, 4), (4, 5), (5, N)]
    steps = [layer(x[:, start:end], mask=allowed[start:end, :end], cache=cache) for start, end in cuts]
    assert_same(torch.cat(steps, 1), layer(x, mask=allowed))


def test_gates_of_masked_keys_are_left_out() -> None:
    layer, x = make(), tokens()
    mask = torch.ones(N, N, dtype=torch.bool).tril()
    mask[:, 4] = False
    without = torch.cat([x[:, :4], x[:, 5:]], 1)
    rows = [i for i in range(N) if i != 4]
    assert_same(layer(x, mask=mask)[:, rows], layer(without, mask=masks.causal()))


LOW = {
    "float32": (torch.float32, None, 2e-5),
    "bfloat16": (torch.bfloat16, None, 0.015),
    "float16": (torch.float16, None, 0.002),
    "autocast": (torch.float32, torch.bfloat16, 0.015),
}


def relative_error(measured: Tensor, exact: Tensor) -> float:
    return ((measured.double() - exact).norm() / exact.norm()).item()


def results(layer: ForgettingAttention, x: Tensor, mask: masks.Mask | None) -> list[Tensor]:
    """The output, and the gradients of the tokens and of W_f."""
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = x.clone().requires_grad_()
    out = layer(tokens, mask=mask)
    return [out, *torch.autograd.grad((out.double() * direction).sum(), [tokens, layer.forget.weight])]


@pytest.mark.parametrize("mask", [None, masks.sliding_window(89)], ids=["causal", "not causal"])
@pytest.mark.parametrize("precision", LOW)
def test_the_error_does_not_grow_with_the_length(precision: str, mask: masks.Mask | None) -> None:
    dtype, autocast, limit = LOW[precision]
    torch.manual_seed(0)
    layer = ForgettingAttention(D, H, forget_bias_init=0.0, causal=mask is None).double()
    x = torch.randn(1, 1031, D, dtype=torch.float64)
    exact = results(layer, x, mask)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        measured = results(layer.to(dtype), x.to(dtype), mask)
    for name, ours, expected in zip(("output", "tokens", "W_f"), measured, exact, strict=True):
        assert relative_error(ours, expected) < limit, name


def test_cached_steps_keep_gates_in_float32() -> None:
    torch.manual_seed(0)
    layer = ForgettingAttention(D, H, forget_bias_init=0.0, causal=True).double()
    x = torch.randn(1, 331, D, dtype=torch.float64)
    with torch.no_grad():
        exact = layer(x)
        layer.bfloat16()
        cache = KVCache(331)
        steps = torch.cat([layer(part, cache=cache) for part in x.bfloat16().split([300, *[1] * 31], 1)], 1)
    assert relative_error(steps[:, 300:], exact[:, 300:]) < 0.015


TILED = {
    "causal": masks.causal(),
    "window": masks.causal() & masks.sliding_window(4),
    "right padding": masks.causal() & masks.padding(torch.tensor([7, 11])),
    "left padding": masks.causal() & masks.padding(torch.tensor([7, 11]), side="left", max_length=N),
    "documents": masks.causal() & masks.documents(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3])),
    "documents per item": masks.causal() & masks.documents(torch.arange(N) // torch.tensor([[3], [4]])),
    "no mask": None,
    "window and padding": masks.sliding_window(3) & masks.padding(torch.tensor([7, 11])),
    "gaps": masks.from_tensor(torch.rand(N, N, generator=torch.Generator().manual_seed(0)) < 0.6),
    "distant keys": masks.causal() & ~masks.sliding_window(2),
    "per head": masks.per_head([masks.sliding_window(2), masks.sliding_window(4) & masks.causal(), masks.causal()]),
}


@pytest.mark.parametrize("tile", [2**5, 2**9, 2**21])
@pytest.mark.parametrize("name", TILED)
def test_tiles_match_the_reference(name: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", tile)
    layer, x, mask = make(), tokens().requires_grad_(), TILED[name]
    allowed = None if mask is None else mask.materialize(N).expand(B, H, N, N)
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x, mask=mask), sources), (reference(layer, x, allowed), sources), 1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_no_full_matrix_is_stored(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**16)
    tiles, decay = [], DecayedMap._decay

    def recording(self: DecayedMap, *args: Any) -> Tensor:
        tile = decay(self, *args)
        assert not tile.requires_grad or torch.is_grad_enabled()
        tiles.append(tile.numel())
        return tile

    monkeypatch.setattr(DecayedMap, "_decay", recording)
    layer, saved = ForgettingAttention(D, H, causal=causal), [0]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        layer(torch.randn(1, 521, D)).sum()
    assert max(tiles) <= 2**16
    assert max(saved) <= 8 * 521 * 2 * D, "tiles are not saved for the backward pass"


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_second_derivatives_are_exact_or_refused(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**7)  # several tiles
    layer, x = make(causal=causal), tokens(5).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda x: layer(x).tanh(), x)
    if causal:
        (gradient,) = torch.autograd.grad(layer(x).tanh().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
            gradient.square().sum().backward()


def test_the_gradient_of_a_learned_bias() -> None:
    layer, x, bias = make(causal=True), tokens(), torch.randn(1, H, N, N, dtype=torch.float64, requires_grad=True)
    allowed = masks.causal().materialize(N).expand(B, H, N, N)
    outs = layer(x, attn_bias=bias), reference(layer, x, allowed, bias.expand(B, -1, -1, -1))
    assert_same_gradients(*((out, [bias]) for out in outs), 1e-12)
