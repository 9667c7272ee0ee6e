"""Nyström attention: the worked example, exactness, segments, padding, the convolution, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import PADDED, assert_same, assert_same_scaled, padding_lengths, perturbed, random
from torch import Tensor, nn

from attnlab import masks
from attnlab.models.multihead import MultiAttention
from attnlab.models.nystrom import NystromAttention
from attnlab.models.nystrom.nystrom import iterative_pinv
from attnlab.nn.attention import UnsupportedError

B, N, H, D, d, M = 2, 13, 3, 15, 5, 4
EXACT: dict[str, Any] = {"inverse": "exact"}


def made(**options: Any) -> NystromAttention:
    torch.manual_seed(0)
    return perturbed(NystromAttention(D, H, **{"num_landmarks": M, **options}))


def exact_attention(layer: NystromAttention) -> MultiAttention:
    exact = MultiAttention(D, H).double().eval()
    exact.load_state_dict({name: layer.state_dict()[name] for name in exact.state_dict()})
    return exact


@pytest.mark.parametrize(("landmarks", "expected"), [(1, [51, 51, 51]), (3, [42, 51, 57]), (5, [42, 51, 57])])
def test_the_worked_example(landmarks: int, expected: list[float]) -> None:
    """Query i and key j have a score whose exponential is 2^(i j)."""
    layer = NystromAttention(4, 1, num_landmarks=landmarks, bias=False, inverse="exact").double()
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.qkv.weight[0, 0] = 2 * math.log(2)
        layer.qkv.weight[4, 0] = layer.qkv.weight[8, 1] = 1
        nn.init.eye_(layer.output.weight)
    x = torch.tensor([[[0.0, 21, 0, 0], [1, 42, 0, 0], [2, 63, 0, 0]]], dtype=torch.float64)
    assert layer(x)[0, :, 0].tolist() == pytest.approx(expected)


@PADDED
@pytest.mark.parametrize("landmarks", [N, N + 3])
def test_it_is_exact_with_a_landmark_per_token(landmarks: int, padded: bool) -> None:
    layer, x = made(num_landmarks=landmarks, **EXACT), random(B, N, D)
    lengths, real = padding_lengths(B, N, padded)
    mask = masks.padding(lengths) if padded else None
    exact = exact_attention(layer)
    assert_same(layer(x, mask=mask)[real], exact(x, mask=mask)[real], 1e-8)
    weights = layer.attention_weights(x, mask=mask).transpose(1, 2)
    assert_same(weights[real], exact.attention_weights(x, mask=mask).transpose(1, 2)[real], 1e-8)
    for fewer in (made(num_landmarks=N - 3, **EXACT), made(num_landmarks=landmarks, iterations=1)):
        assert (fewer(x) - exact(x)).abs().max() > 1e-3


def test_more_iterations_approach_the_exact_inverse() -> None:
    x = random(B, N, D) / 3
    exact = made(**EXACT)(x)
    errors = [(made(iterations=steps)(x) - exact).abs().max().item() for steps in (2, 6, 12, 24)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9 < errors[0]


@pytest.mark.parametrize("length", [12, N, 3])  # divisible by the landmarks, not divisible, and fewer
def test_a_loop_over_segments(length: int) -> None:
    layer, x = made(**EXACT), random(B, length, D)
    m = min(M, length)
    out = torch.zeros(B, length, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            q, k, v = (part[b].split(d, -1)[h] for part in layer.qkv(x).chunk(3, -1))
            landmarks = [], []
            for s in range(m):
                members = [i for i in range(length) if i * m // length == s]
                for means, vectors in zip(landmarks, (q, k), strict=True):
                    means.append(sum(vectors[i] for i in members) / len(members))
            ql, kl = (torch.stack(means) for means in landmarks)

            def softmax(a: Tensor, c: Tensor) -> Tensor:
                e = torch.exp(a @ c.T / d**0.5)
                return e / e.sum(-1, keepdim=True)

            inverse = torch.linalg.inv(softmax(ql, kl))
            out[b, :, h * d : h * d + d] = softmax(q, kl) @ inverse @ softmax(ql, k) @ v
    assert_same_scaled(layer(x), layer.output(out), 1e-9)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, EXACT])
def test_scattered_padding_is_left_out(options: Any) -> None:
    layer, x = made(**options), random(B, N, D)
    keep = torch.rand(B, N, generator=torch.Generator().manual_seed(3)) < 0.6
    out = layer(x, mask=masks.from_attention_mask(keep))
    for b in range(B):
        assert_same(out[b, keep[b]], layer(x[b : b + 1, keep[b]])[0])
    both = masks.from_attention_mask(keep) & masks.padding(torch.tensor([9, N]))
    kept = keep & (torch.arange(N) < torch.tensor([[9], [N]]))
    assert_same(layer(x, mask=both), layer(x, mask=masks.from_attention_mask(kept)))


def test_the_pseudo_inverse_of_a_matrix_does_not_depend_on_the_others() -> None:
    A = random(5, 3, M, M).softmax(-1)
    A[1] = torch.eye(M)[0]
    A[2] = 0
    for i in range(5):
        assert_same(iterative_pinv(A, 6)[i], iterative_pinv(A[i], 6))
    assert not iterative_pinv(A, 6)[2].any()
    assert_same(iterative_pinv(A[1], 20), torch.linalg.pinv(A[1]), 1e-9)


@PADDED
@torch.no_grad()
def test_the_convolution_adds_neighbouring_values(padded: bool) -> None:
    layer, x = made(conv_kernel=5), random(B, N, D)
    lengths, real = padding_lengths(B, N, padded)
    mask = masks.padding(lengths) if padded else None
    plain = made(conv_kernel=0)
    plain.load_state_dict({name: tensor for name, tensor in layer.state_dict().items() if name != "conv.weight"})
    assert layer.conv is not None
    extra = torch.zeros(B, N, D, dtype=torch.float64)
    values = layer.qkv(x)[..., 2 * D :] * real[..., None]
    for i in range(N):
        for j in range(max(0, i - 2), min(N, i + 3)):
            for h in range(H):
                part = slice(h * d, h * d + d)
                extra[:, i, part] += layer.conv.weight[h, 0, j - i + 2, 0] * values[:, j, part]
    expected = plain(x, mask=mask) + extra @ layer.output.weight.T
    assert_same(layer(x, mask=mask), expected)
    assert_same(layer.apply_weights(layer.attention_weights(x, mask=mask), x, mask=mask), expected)


def test_the_rank_is_at_most_the_number_of_landmarks() -> None:
    weights = made()(random(B, N, D)), made().attention_weights(random(B, N, D))
    assert (torch.linalg.matrix_rank(weights[1], rtol=1e-9) == M).all()
    assert weights[1].min() < 0


def test_the_heads_of_a_convolution_can_be_pruned() -> None:
    layer, x = made(conv_kernel=3), random(B, N, D)
    small = layer.keep_heads([2, 0])
    assert_same(small.attention_weights(x), layer.attention_weights(x)[:, [0, 2]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_landmarks": 0}, ValueError, "^num_landmarks must be at least 1, not 0$"),
        ({"iterations": 0}, ValueError, "^iterations must be at least 1, not 0$"),
        ({"inverse": "pinv"}, ValueError, "^inverse must be 'iterative' or 'exact', not 'pinv'$"),
        ({"conv_kernel": 4}, ValueError, "^conv_kernel must be odd, .* or 0 for none, not 4; try 5$"),
        ({"conv_kernel": -3}, ValueError, "^conv_kernel must be at least 0, not -3$"),
        ({"conv_kernel": "3"}, TypeError, "^conv_kernel must be an integer, not '3'$"),
        ({"causal": True}, UnsupportedError, "does not support causal; it supports padding, weights$"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made(**options)
