"""α-entmax against the entmax package 1.3, and the layer against that package's attention weights in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from comparison import (
    DTYPES,
    PADDED,
    TOLERANCE,
    assert_same,
    assert_same_gradients,
    heads_of,
    padding_lengths,
    random,
    random_biases,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnlab import masks
from attnlab.models.entmax import EntmaxAttention
from attnlab.ops.entmax import entmax

ORACLES = {"test_values": ("entmax", "entmax_bisect"), "test_the_layer": ("entmax", "entmax_bisect")}

ALPHAS = pytest.mark.parametrize("alpha", [1.25, 1.5, 1.75, 2.0, 3.0])


def package_bisection() -> Callable[..., Tensor]:
    bisection: Callable[..., Tensor] = pytest.importorskip("entmax.root_finding").entmax_bisect
    return bisection


def package_entmax(alpha: float, dtype: torch.dtype = torch.float64) -> Callable[[Tensor], Tensor]:
    """The exact form of the package where it has one, else its bisection to full precision."""
    activations = pytest.importorskip("entmax.activations")  # not "entmax", which is this folder without the package
    exact: dict[float, Any] = {1.5: activations.entmax15, 2.0: activations.sparsemax}
    if alpha in exact:
        return partial(exact[alpha], dim=-1)
    return partial(package_bisection(), alpha=alpha, dim=-1, n_iter=100 if dtype == torch.float64 else 50)


@DTYPES
@ALPHAS
@pytest.mark.parametrize("shape", [(2, 3, 7), (5, 1), (1, 2), (3, 31), (101,)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_values_and_gradients(dtype: torch.dtype, alpha: float, shape: tuple[int, ...], scale: float) -> None:
    a, b = (random(*shape, dtype=dtype, scale=scale).requires_grad_() for _ in range(2))
    direction = random(*shape[::-1], dtype=dtype).reshape(shape)
    expected, ours = package_entmax(alpha, dtype)(a), entmax(b, alpha)
    assert_same(ours, expected, TOLERANCE[dtype])
    (expected * direction).sum().backward()
    (ours * direction).sum().backward()
    size = 1 + a.grad.abs()  # gradients are large for α > 2
    assert_same(b.grad / size, a.grad / size, TOLERANCE[dtype])


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("shape", [(2, 3, 7), (5, 1), (101,)])
def test_values_of_bisection(alpha: float, shape: tuple[int, ...]) -> None:
    assert_same(
        entmax(random(*shape), alpha), package_bisection()(random(*shape), alpha=alpha, dim=-1, n_iter=100), 1e-10
    )


@pytest.mark.slow
@ALPHAS
@settings(max_examples=40)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_ties(alpha: float, scores: list[int]) -> None:
    drawn = torch.tensor(scores, dtype=torch.float64)
    ours = entmax(drawn, alpha)
    assert_same(ours, package_entmax(alpha)(drawn), 1e-10)
    for score in set(scores):
        assert ours[drawn == score].unique().numel() == 1


@DTYPES
@ALPHAS
def test_very_large_scores(dtype: torch.dtype, alpha: float) -> None:
    scores = torch.tensor([[1e6, 1e6, -1e6], [1e4, 1e4 - 0.25, 0.0], [-1e8, -1e8, -1e8]], dtype=dtype)
    a, b = (scores.clone().requires_grad_() for _ in range(2))
    expected = package_entmax(alpha, dtype)(a - a.detach().amax(-1, keepdim=True))  # the same, without overflow
    assert_same_gradients((entmax(b, alpha), [b]), (expected, [a]))


@ALPHAS
def test_masked_keys_are_as_if_absent(alpha: float) -> None:
    a, b = (random(5, 7).requires_grad_() for _ in range(2))
    permitted = random(7, 5).mT > -0.3
    permitted[3], permitted[4] = False, False
    permitted[4, 2] = True  # a fully masked row, and one with a single key
    rows = [
        torch.zeros(7, dtype=torch.float64).masked_scatter(allowed, package_entmax(alpha)(scores[allowed]))
        if allowed.any()
        else 0 * scores
        for scores, allowed in zip(a, permitted, strict=True)
    ]
    ours = entmax(b, alpha, permitted)
    assert not ours[3].any()
    assert_same_gradients((ours, [b]), (torch.stack(rows), [a]))


@pytest.mark.parametrize(
    ("dtype", "alpha"), [(torch.float32, 1.5), *((torch.float64, alpha) for alpha in (1.25, 1.5, 1.75, 2.0, 3.0))]
)
@pytest.mark.parametrize(("causal", "cross"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize(("B", "N", "M", "H", "D"), [(2, 7, 5, 3, 12), (1, 5, 7, 1, 2), (3, 3, 11, 2, 22)])
@PADDED
def test_the_layer(
    dtype: torch.dtype, alpha: float, causal: bool, cross: bool, B: int, N: int, M: int, H: int, D: int, padded: bool
) -> None:
    torch.manual_seed(0)
    layer = random_biases(EntmaxAttention(D, H, alpha=alpha, causal=causal).to(dtype))
    x = random(B, N, D, dtype=dtype).requires_grad_()
    context = random(B, M, D, dtype=dtype) if cross else x
    lengths, real = padding_lengths(B, context.shape[1], padded)
    allowed = real[:, None].expand(B, N, -1)
    allowed = allowed.tril() if causal else allowed
    Q, K, V = heads_of(layer.qkv, x, H)[0], *heads_of(layer.qkv, context, H)[1:]
    heads = [
        package_entmax(alpha, dtype)(K[b, h][allowed[b, i]] @ Q[b, h, i] / (D // H) ** 0.5) @ V[b, h][allowed[b, i]]
        for b in range(B)
        for i in range(N)
        for h in range(H)
    ]
    mask = masks.padding(lengths, max_length=context.shape[1]) if padded else None
    ours, sources = layer(x, mask=mask, context=context if cross else None), [x, *layer.parameters()]
    assert_same_gradients((ours, sources), (layer.output(torch.cat(heads).reshape(B, N, D)), sources))
