"""Forgetting attention: open gates forget nothing, and both ways to write the decay agree."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import Cache, check_attention, masks
from attnlab.models.forgetting import ForgettingAttention
from attnlab.models.multihead import MultiAttention
from attnlab.pruning import prune_heads

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
    same(layer.weights(tokens()), multi.weights(tokens()))


def test_rotary_positions_keep_every_promise() -> None:
    check_attention(partial(ForgettingAttention, num_heads=2, positions="rotary"), fast=True)


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize(
    "mask",
    [
        masks.causal(),
        masks.causal() & masks.window(4),
        masks.causal() & masks.padding(torch.tensor([7, 11])),
        masks.causal() & masks.padding(torch.tensor([7, 11]), side="left", total=N),
    ],
    ids=str,
)
def test_the_number_in_the_key_and_the_matrix_agree(mask: masks.Mask, positions: Any) -> None:
    layer, x = made(positions=positions), tokens()
    written = masks.from_tensor(mask.materialize(N).expand(B, 1, N, N))
    bound = mask.bind(N, N, shape=(B, H))
    assert bound.looks_back_unbroken
    assert not written.bind(N, N, shape=(B, H)).looks_back_unbroken
    same(layer(x, mask=mask), layer(x, mask=written))
    same(layer.weights(x, mask=mask), layer.weights(x, mask=written))


@pytest.mark.parametrize("positions", ["none", "rotary"])
@pytest.mark.parametrize("cuts", [[N], [1] * N, [4, 1, 6]])
@pytest.mark.parametrize("broken", [True, False])
def test_steps_are_the_whole(cuts: list[int], positions: Any, broken: bool) -> None:
    layer, x, cache = made(causal=True, positions=positions), tokens(), Cache(N)
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
    mask = masks.padding(torch.tensor([N, N]), side="left", total=N + 3)
    same(layer(padded, mask=mask)[:, 3:], layer(x))


def test_what_may_not_be_seen_makes_nobody_forget() -> None:
    layer, x = made(), tokens()
    hole = torch.ones(N, N, dtype=torch.bool).tril()
    hole[:, 4] = False
    without = torch.cat([x[:, :4], x[:, 5:]], 1)
    rows = [i for i in range(N) if i != 4]
    same(layer(x, mask=hole)[:, rows], layer(without, mask=masks.causal()))


@pytest.mark.parametrize("gone", [[0], [1], [0, 2]])
@pytest.mark.parametrize("causal", [True, False])
def test_a_head_that_goes_takes_its_gate(gone: list[int], causal: bool) -> None:
    layer, x = made(causal=causal), tokens()
    small = prune_heads(layer, gone)
    left = [head for head in range(H) if head not in gone]
    assert small.forget.out_features == len(left)
    same(small.weights(x), layer.weights(x)[:, left])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_heads": 5}, r"^embed_dim \(12\) must be divisible by num_heads \(5\)"),
        ({"positions": "rotary", "num_heads": 4}, r"^rotary positions turn pairs: 1 of head_dim \(3\) must be even"),
        ({"positions": "forget"}, "^positions is none, rotary, alibi or t5"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ForgettingAttention(D, **{"num_heads": H, **options})
