"""Forgetting attention: open gates forget nothing, and both ways to write the decay agree."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnlab import KVCache, check_attention, masks
from attnlab.models.forgetting import ForgettingAttention
from attnlab.models.forgetting.reference import reference
from attnlab.models.multihead import MultiAttention
from attnlab.nn.pruning import prune_heads
from attnlab.ops.decayed import DecayedMap

B, N, H, D = 2, 11, 3, 12


def made(**options: Any) -> ForgettingAttention:
    """A layer whose parameters are moved off where they start, where they would hide a mistake."""
    torch.manual_seed(0)
    layer = ForgettingAttention(D, H, **options).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    return layer


def tokens(length: int = N) -> Tensor:
    return torch.randn(B, length, D, generator=torch.Generator().manual_seed(length), dtype=torch.float64)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_gate_a_head_is_all_that_is_new() -> None:
    count = sum(parameter.numel() for parameter in ForgettingAttention(D, H).parameters())
    assert count == 4 * D * (D + 1) + H * (D + 1)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", ["none", "rotary"])
def test_open_gates_forget_nothing(causal: bool, positions: Any) -> None:
    layer = made(causal=causal, positions=positions)
    multi = MultiAttention(D, H, causal=causal, positions=positions).double().eval()
    with torch.no_grad():
        layer.forget.bias.fill_(60)
    multi.load_state_dict({name: part for name, part in layer.state_dict().items() if "forget" not in name})
    same(layer(tokens()), multi(tokens()))
    same(layer.attention_weights(tokens()), multi.attention_weights(tokens()))


def test_rotary_positions_keep_every_promise() -> None:
    check_attention(partial(ForgettingAttention, num_heads=2, positions="rotary"), fast=True)


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
def test_the_number_in_the_key_and_the_matrix_agree(mask: masks.Mask, positions: Any) -> None:
    layer, x = made(positions=positions), tokens()
    written = masks.from_tensor(mask.materialize(N).expand(B, 1, N, N))
    bound = mask.bind(N, N, shape=(B, H))
    assert bound.is_causal_and_contiguous
    assert not written.bind(N, N, shape=(B, H)).is_causal_and_contiguous
    same(layer(x, mask=mask), layer(x, mask=written))
    same(layer.attention_weights(x, mask=mask), layer.attention_weights(x, mask=written))


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize("cuts", [[N], [1] * N, [4, 1, 6]])
@pytest.mark.parametrize("broken", [True, False])
def test_steps_are_the_whole(cuts: list[int], positions: Any, broken: bool) -> None:
    layer, x, cache = made(causal=True, positions=positions), tokens(), KVCache(N)
    seen = torch.rand(N, N, generator=torch.Generator().manual_seed(0)) < 0.6
    at, steps = 0, []
    with torch.no_grad():
        for part in x.split(cuts, 1):
            rows = seen[at : at + part.shape[1], : at + part.shape[1]]
            steps.append(layer(part, mask=rows if broken else None, cache=cache))
            at += part.shape[1]
    same(torch.cat(steps, 1), layer(x, mask=seen if broken else None))


def test_padding_on_the_left_is_not_there() -> None:
    layer, x = made(causal=True), tokens()
    padded = torch.cat([torch.full((B, 3, D), 7.0, dtype=torch.float64), x], 1)
    mask = masks.padding(torch.tensor([N, N]), side="left", max_length=N + 3)
    same(layer(padded, mask=mask)[:, 3:], layer(x))


def test_what_may_not_be_seen_makes_nobody_forget() -> None:
    layer, x = made(), tokens()
    hole = torch.ones(N, N, dtype=torch.bool).tril()
    hole[:, 4] = False
    without = torch.cat([x[:, :4], x[:, 5:]], 1)
    rows = [i for i in range(N) if i != 4]
    same(layer(x, mask=hole)[:, rows], layer(without, mask=masks.causal()))


LOW = {
    "float32": (torch.float32, None, 2e-5),
    "bfloat16": (torch.bfloat16, None, 0.015),
    "float16": (torch.float16, None, 0.002),
    "autocast": (torch.float32, torch.bfloat16, 0.015),
}


def relative(measured: Tensor, exact: Tensor) -> float:
    return ((measured.double() - exact).norm() / exact.norm()).item()


def results(layer: ForgettingAttention, x: Tensor, mask: masks.Mask | None) -> list[Tensor]:
    """The output, and the gradients of the tokens and of the gates' weights."""
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = x.clone().requires_grad_()
    out = layer(tokens, mask=mask)
    return [out, *torch.autograd.grad((out.double() * direction).sum(), [tokens, layer.forget.weight])]


@pytest.mark.parametrize("length", [67, 1031])
@pytest.mark.parametrize("rule", [None, masks.sliding_window(89)], ids=["causal", "not causal"])
@pytest.mark.parametrize("precision", LOW)
def test_error_is_independent_of_the_length(precision: str, rule: masks.Mask | None, length: int) -> None:
    dtype, autocast, limit = LOW[precision]
    torch.manual_seed(0)
    layer = ForgettingAttention(D, H, causal=rule is None).double()
    x = torch.randn(1, length, D, dtype=torch.float64)
    exact = results(layer, x, rule)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        measured = results(layer.to(dtype), x.to(dtype), rule)
    for name, ours, true in zip(("out", "tokens", "gates"), measured, exact, strict=True):
        assert relative(ours, true) < limit, name


def test_cached_steps_keep_gates_in_float32() -> None:
    torch.manual_seed(0)
    layer, x = ForgettingAttention(D, H, causal=True).double(), torch.randn(1, 331, D, dtype=torch.float64)
    with torch.no_grad():
        exact = layer(x)
        layer.bfloat16()
        cache = KVCache(331)
        steps = torch.cat([layer(part, cache=cache) for part in x.bfloat16().split([300, *[1] * 31], 1)], 1)
    assert relative(steps[:, 300:], exact[:, 300:]) < 0.015


TILED = {
    "causal": masks.causal(),
    "window": masks.causal() & masks.sliding_window(4),
    "right padding": masks.causal() & masks.padding(torch.tensor([7, 11])),
    "left padding": masks.causal() & masks.padding(torch.tensor([7, 11]), side="left", max_length=N),
    "documents": masks.causal() & masks.documents(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3])),
    "documents of items": masks.causal() & masks.documents(torch.arange(N) // torch.tensor([[3], [4]])),
    "everything": None,
    "both sides": masks.sliding_window(3) & masks.padding(torch.tensor([7, 11])),
    "holes": masks.from_tensor(torch.rand(N, N, generator=torch.Generator().manual_seed(0)) < 0.6),
    "behind": masks.causal() & ~masks.sliding_window(2),
    "heads": masks.per_head([masks.sliding_window(2), masks.sliding_window(4) & masks.causal(), masks.causal()]),
}


@pytest.mark.parametrize("numbers", [2**5, 2**9, 2**21])
@pytest.mark.parametrize("name", TILED)
def test_tiles_are_the_formula(name: str, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", numbers)
    layer, x, mask = made(), tokens().requires_grad_(), TILED[name]
    permitted = None if mask is None else mask.materialize(N).expand(B, H, N, N)
    out, expected = layer(x, mask=mask), reference(layer, x, permitted)
    same(out, expected)
    wanted = [x, *layer.parameters()]
    direction = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
    ours, true = (torch.autograd.grad((result * direction).sum(), wanted) for result in (out, expected))
    for one, other in zip(ours, true, strict=True):
        same(one, other)


@pytest.mark.parametrize("causal", [True, False])
def test_no_matrix_of_all_rows_is_kept(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**16)
    cells, decay = [], DecayedMap._decay

    def recorded(self: DecayedMap, *given: Any) -> Tensor:
        part = decay(self, *given)
        assert not part.requires_grad or torch.is_grad_enabled()
        cells.append(part.numel())
        return part

    monkeypatch.setattr(DecayedMap, "_decay", recorded)
    layer, kept = ForgettingAttention(D, H, causal=causal), [0]
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        layer(torch.randn(1, 521, D)).sum()
    assert max(cells) <= 2**16
    assert max(kept) <= 8 * 521 * 2 * D, "of the tiles nothing is kept for the backward pass"


@pytest.mark.parametrize("causal", [True, False])
def test_second_derivatives_are_exact_or_refused(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnlab.ops.rowwise.MAX_TILE_VALUES", 2**7)  # several tiles
    layer, x = made(causal=causal), tokens(5).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda x: layer(x).tanh(), x)
    if causal:
        (gradient,) = torch.autograd.grad(layer(x).tanh().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
            gradient.square().sum().backward()


def test_a_compiler_makes_one_graph() -> None:
    layer, x = made(causal=True), tokens().requires_grad_()
    graph = torch.compile(layer, fullgraph=True, backend="aot_eager")
    same(graph(x), layer(x))
    same(*(torch.autograd.grad(call(x).square().sum(), x)[0] for call in (graph, layer)))


def test_a_learned_bias_has_its_gradient() -> None:
    layer, x, bias = made(causal=True), tokens(), torch.randn(1, H, N, N, dtype=torch.float64, requires_grad=True)
    permitted = masks.causal().materialize(N).expand(B, H, N, N)
    ours, true = layer(x, attn_bias=bias), reference(layer, x, permitted, bias.expand(B, -1, -1, -1))
    same(ours, true)
    same(*(torch.autograd.grad(out.square().sum(), bias)[0] for out in (ours, true)))


@pytest.mark.parametrize("gone", [[0], [1], [0, 2]])
@pytest.mark.parametrize("causal", [True, False])
def test_a_head_that_goes_takes_its_gate(gone: list[int], causal: bool) -> None:
    layer, x = made(causal=causal), tokens()
    small = prune_heads(layer, gone)
    left = [head for head in range(H) if head not in gone]
    assert small.forget.out_features == len(left)
    same(small.attention_weights(x), layer.attention_weights(x)[:, left])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_heads": 5}, r"^embed_dim \(12\) must be divisible by num_heads \(5\)"),
        ({"positions": "rotary", "num_heads": 4}, "^rotary positions need an even head_dim, not 3"),
        ({"positions": "forget"}, "^positions is none, rotary, alibi or t5"),
        ({"positions": "alibi"}, "^ForgettingAttention takes positions none or rotary, not alibi"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ForgettingAttention(D, **{"num_heads": H, **options})
