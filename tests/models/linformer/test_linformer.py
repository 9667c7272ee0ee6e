"""Linformer attention: the worked example, exactness with the identity, sharing, padding, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import assert_same, perturbed, random
from torch import nn

from attnlab import masks
from attnlab.models.linformer import LinformerAttention
from attnlab.models.multihead import MultiAttention
from attnlab.nn.attention import UnsupportedError

B, N, H, D, d, K, LONGEST = 2, 7, 3, 15, 5, 4, 11
SHARING = pytest.mark.parametrize("sharing", ["none", "headwise", "key-value"])


def made(**options: Any) -> LinformerAttention:
    torch.manual_seed(0)
    return perturbed(LinformerAttention(D, H, **{"max_length": LONGEST, "rank": K, **options}))


def by_hand(E: list[list[float]], F: list[list[float]]) -> LinformerAttention:
    """The worked example: keys 0, 1 and 2, whose scores have the exponentials 1, 2 and 4, and values 21, 42 and 63."""
    layer = LinformerAttention(4, 1, max_length=3, rank=len(E), bias=False).double()
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.qkv.weight[0, 2] = 2 * math.log(2)
        layer.qkv.weight[4, 0] = layer.qkv.weight[8, 1] = 1
        nn.init.eye_(layer.output.weight)
        layer.get_parameter("E").copy_(torch.tensor(E))
        layer.get_parameter("F").copy_(torch.tensor(F))
    return layer


IDENTITY = torch.eye(3).tolist()
HALVES = [[1.0, 0, 0], [0, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("E", "F", "expected"),
    [
        (IDENTITY, IDENTITY, 51),
        ([[1.0, 0, 0], [0, 1, 1]], HALVES, 49),
        ([[0.0, 1, 5]], [[1 / 3, 1 / 3, 1 / 3]], 42),
    ],
)
def test_the_worked_example(E: Any, F: Any, expected: float) -> None:
    x = torch.tensor([[[0.0, 21, 1, 0], [1, 42, 1, 0], [2, 63, 1, 0]]], dtype=torch.float64)
    assert by_hand(E, F)(x)[0, :, 0].tolist() == pytest.approx([expected] * 3)


@SHARING
def test_a_loop_over_tokens(sharing: str) -> None:
    layer, x = made(sharing=sharing), random(B, N, D)
    out = torch.zeros(B, N, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            E, F = (
                matrix[h] if sharing == "none" else matrix
                for matrix in (layer.E, layer.E if layer.F is None else layer.F)
            )
            q, k, v = (part[b].split(d, -1)[h] for part in layer.qkv(x).chunk(3, -1))
            keys = [sum(E[r, j] * k[j] for j in range(N)) for r in range(K)]
            values = [sum(F[r, j] * v[j] for j in range(N)) for r in range(K)]
            for i in range(N):
                p = torch.stack([q[i] @ key / d**0.5 for key in keys]).exp()
                out[b, i, h * d : h * d + d] = sum(p[r] / p.sum() * values[r] for r in range(K))
    assert_same(layer(x), layer.output(out))


@SHARING
@pytest.mark.parametrize("length", [N, LONGEST])
def test_it_is_exact_where_the_projections_are_the_identity(sharing: str, length: int) -> None:
    """Keys of zeros would take weight, so this holds for sequences of the maximum length only."""
    layer, x = made(sharing=sharing, rank=LONGEST), random(B, length, D)
    with torch.no_grad():
        for matrix in (layer.E, layer.F):
            if matrix is not None:
                matrix.copy_(torch.eye(LONGEST).expand_as(matrix))
    exact = MultiAttention(D, H).double().eval()
    exact.load_state_dict({name: layer.state_dict()[name] for name in exact.state_dict()})
    difference = (layer(x) - exact(x)).abs().max()
    assert difference < 1e-12 if length == LONGEST else difference > 1e-3


@SHARING
def test_the_number_of_parameters(sharing: str) -> None:
    plain = sum(p.numel() for p in MultiAttention(D, H).parameters())
    count = sum(p.numel() for p in made(sharing=sharing).parameters()) - plain
    assert count == K * LONGEST * {"none": 2 * H, "headwise": 2, "key-value": 1}[sharing]


@torch.no_grad()
def test_scattered_padding_uses_the_columns_of_the_real_tokens() -> None:
    layer, x = made(), random(B, N, D)
    keep = torch.tensor([[True, False, True, True, False, False, True], [False, True, True, True, True, False, True]])
    out = layer(x, mask=masks.from_attention_mask(keep))
    context = layer(x, mask=masks.from_attention_mask(keep), context=x)
    for b in range(B):
        alone = layer(x[b : b + 1, keep[b]])
        assert_same(out[b : b + 1, keep[b]], alone)
        assert_same(context[b : b + 1, keep[b]], alone)
    combined = masks.from_attention_mask(keep) & masks.padding(torch.tensor([4, 7]))
    both = keep & (torch.arange(N) < torch.tensor([[4], [7]]))
    assert_same(layer(x, mask=combined), layer(x, mask=masks.from_attention_mask(both)))


@SHARING
def test_projections_start_as_those_of_the_authors(sharing: str) -> None:
    """`xavier_uniform_` of a matrix of max_length columns and k rows, for each head, with a gain of √½."""
    layer = LinformerAttention(D, H, max_length=2003, rank=16, sharing=sharing)
    bound = torch.nn.init.xavier_uniform_(torch.empty(16, 2003), gain=0.5**0.5).abs().max().item()
    for matrix in (layer.E, layer.F):
        if matrix is not None:
            assert matrix.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert matrix.std().item() == pytest.approx(2019**-0.5, rel=0.02)
            assert abs(matrix.mean().item()) < 0.01 * bound


def test_layers_can_share_their_projections() -> None:
    first, second = made(), made()
    second.E, second.F = first.E, first.F
    first(second(random(B, N, D))).sum().backward()
    assert len({id(p) for layer in (first, second) for p in layer.parameters()}) == 4 + 4 + 2
    assert first.E.grad is not None
    assert first.E.grad[:, N:].abs().sum() == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "^rank must be at least 1, not 0$"),
        ({"max_length": 0}, ValueError, "^max_length must be at least 1, not 0$"),
        ({"rank": 2.0}, TypeError, "rank"),
        ({"sharing": "layerwise"}, ValueError, r"^sharing must be one of none, headwise, key-value, not 'layerwise'$"),
        ({"causal": True}, UnsupportedError, "does not support causal; it supports padding, "),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made(**options)


@pytest.mark.parametrize("call", ["forward", "context", "attention_weights"])
def test_a_longer_sequence_is_refused(call: str) -> None:
    layer, x = made(), random(B, LONGEST + 1, D)
    calls = {
        "forward": lambda: layer(x),
        "context": lambda: layer(x[:, :2], context=x),
        "attention_weights": lambda: layer.attention_weights(x),
    }
    with pytest.raises(
        ValueError, match=r"takes at most max_length \(11\) tokens, not 12; build it with max_length=12$"
    ):
        calls[call]()
    layer(x, context=x[:, 1:])  # queries need no columns


@pytest.mark.parametrize("mask", [masks.causal(), masks.sliding_window(3), masks.documents(torch.arange(N) // 3)])
def test_masks_of_single_pairs_are_refused(mask: masks.Mask) -> None:
    with pytest.raises(UnsupportedError, match="it takes masks of the kinds padding"):
        made()(random(B, N, D), mask=mask)
