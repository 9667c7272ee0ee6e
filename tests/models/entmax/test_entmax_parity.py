"""α-entmax against the entmax package 1.3, and the layer against a float64 loop over that package's weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnlab import masks
from attnlab.models.entmax import EntmaxAttention
from attnlab.ops.entmax import entmax

ORACLES = {"test_values": ("entmax", "entmax_bisect"), "test_the_layer": ("entmax", "entmax_bisect")}

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE))
ALPHAS = pytest.mark.parametrize("alpha", [1.25, 1.5, 1.75, 2.0, 3.0])


def numbers(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
    return (drawn * scale).to(dtype)


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[ours.dtype])


def theirs(alpha: float, dtype: torch.dtype = torch.float64) -> Callable[[Tensor], Tensor]:
    """Their exact form where they have one; else bisection, to the end of the digits."""
    package = pytest.importorskip("entmax")
    exact: dict[float, Any] = {1.5: package.entmax15, 2.0: package.sparsemax}
    if alpha in exact:
        return partial(exact[alpha], dim=-1)
    return partial(package.entmax_bisect, alpha=alpha, dim=-1, n_iter=100 if dtype == torch.float64 else 50)


@DTYPES
@ALPHAS
@pytest.mark.parametrize("shape", [(2, 3, 7), (5, 1), (1, 2), (3, 31), (101,)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_values_and_gradients(dtype: torch.dtype, alpha: float, shape: tuple[int, ...], scale: float) -> None:
    a, b = (numbers(*shape, dtype=dtype, scale=scale).requires_grad_() for _ in range(2))
    wave = numbers(*shape[::-1], dtype=dtype).reshape(shape)
    wanted, ours = theirs(alpha, dtype)(a), entmax(b, alpha)
    same(ours, wanted)
    (wanted * wave).sum().backward()
    (ours * wave).sum().backward()
    size = 1 + a.grad.abs()  # above α = 2 gradients are large
    same(b.grad / size, a.grad / size)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("shape", [(2, 3, 7), (5, 1), (101,)])
def test_bisection_and_their_exact_form_agree_with_ours(alpha: float, shape: tuple[int, ...]) -> None:
    package = pytest.importorskip("entmax")
    scores = numbers(*shape)
    bisected = package.entmax_bisect(scores, alpha=alpha, dim=-1, n_iter=100)
    same(entmax(scores, alpha), bisected)
    same(entmax(scores, alpha), theirs(alpha)(scores))


@ALPHAS
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_ties(alpha: float, scores: list[int]) -> None:
    drawn = torch.tensor(scores, dtype=torch.float64)
    ours = entmax(drawn, alpha)
    same(ours, theirs(alpha)(drawn))
    for score in set(scores):
        assert ours[drawn == score].unique().numel() == 1


@DTYPES
@ALPHAS
def test_very_large_scores(dtype: torch.dtype, alpha: float) -> None:
    scores = torch.tensor([[1e6, 1e6, -1e6], [1e4, 1e4 - 0.25, 0.0], [-1e8, -1e8, -1e8]], dtype=dtype)
    a, b = (scores.clone().requires_grad_() for _ in range(2))
    wanted = theirs(alpha, dtype)(a - a.detach().amax(-1, keepdim=True))  # shifted, which changes nothing but digits
    ours = entmax(b, alpha)
    same(ours, wanted)
    wave = numbers(3, 3, dtype=dtype)
    (wanted * wave).sum().backward()
    (ours * wave).sum().backward()
    same(b.grad, a.grad)


@ALPHAS
def test_what_is_not_permitted_is_as_if_absent(alpha: float) -> None:
    a, b = (numbers(5, 7).requires_grad_() for _ in range(2))
    permitted = numbers(7, 5).mT > -0.3
    permitted[3], permitted[4] = False, False
    permitted[4, 2] = True  # a row with nothing to look at, and one with a single key
    wanted = torch.zeros(5, 7, dtype=torch.float64)
    for row in (0, 1, 2, 4):
        wanted[row, permitted[row]] = theirs(alpha)(a[row, permitted[row]])
    ours = entmax(b, alpha, permitted)
    same(ours, wanted)
    assert not ours[3].any()
    wave = numbers(7, 5).mT
    (wanted * wave).sum().backward()
    (ours * wave).sum().backward()
    same(b.grad, torch.zeros_like(b) if a.grad is None else a.grad)


def loop(layer: EntmaxAttention, x: Tensor, context: Tensor, permitted: Tensor) -> Tensor:
    """The layer query by query, in float64, with their weights."""
    d = layer.head_dim
    W_Q, W_K, W_V = layer.qkv.weight.split(layer.embed_dim)
    b_Q, b_K, b_V = layer.qkv.bias.split(layer.embed_dim)
    out = []
    for b, i in [(b, i) for b in range(len(x)) for i in range(x.shape[1])]:
        heads = []
        for head in range(layer.num_heads):
            own = slice(head * d, (head + 1) * d)
            keys = context[b, permitted[b, i]]
            q, K, V = (W_Q @ x[b, i] + b_Q)[own], (keys @ W_K.T + b_K)[:, own], (keys @ W_V.T + b_V)[:, own]
            heads.append(theirs(layer.alpha)(K @ q / math.sqrt(d)) @ V)
        out.append(layer.output(torch.cat(heads)))
    return torch.stack(out).unflatten(0, x.shape[:2])


@ALPHAS
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("B", "N", "H", "D"), [(2, 7, 3, 12), (1, 5, 1, 2), (3, 3, 2, 22)])
@pytest.mark.parametrize("padded", [False, True])
def test_the_layer(alpha: float, causal: bool, B: int, N: int, H: int, D: int, padded: bool) -> None:
    torch.manual_seed(0)
    layer = EntmaxAttention(D, H, alpha=alpha, causal=causal).double()
    torch.nn.init.normal_(layer.qkv.bias)
    torch.nn.init.normal_(layer.output.bias)
    lengths = torch.tensor([N - 2, N, N - 1][:B])
    rule = masks.padding(lengths if padded else torch.full((B,), N))
    permitted = (rule & masks.causal() if causal else rule).materialize(N).expand(B, 1, N, N)[:, 0]
    a, b = (numbers(B, N, D).requires_grad_() for _ in range(2))
    parameters = list(layer.parameters())
    wanted, ours = loop(layer, a, a, permitted), layer(b, mask=rule if padded else None)
    same(ours, wanted)
    wave = numbers(D, B, N).movedim(0, 2)
    for theirs_, mine in zip(
        torch.autograd.grad((wanted * wave).sum(), [a, *parameters]),
        torch.autograd.grad((ours * wave).sum(), [b, *parameters]),
        strict=True,
    ):
        same(mine, theirs_)


@ALPHAS
def test_the_layer_over_a_context(alpha: float) -> None:
    torch.manual_seed(0)
    layer = EntmaxAttention(12, 3, alpha=alpha).double()
    torch.nn.init.normal_(layer.qkv.bias)
    x, context = numbers(2, 5, 12), numbers(2, 7, 12)
    permitted = torch.ones(2, 5, 7, dtype=torch.bool)
    same(layer(x, context=context), loop(layer, x, context, permitted))


@DTYPES
def test_the_layer_in_float32_too(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = EntmaxAttention(12, 3)
    x = numbers(2, 7, 12)
    wanted = loop(layer.double(), x, x, torch.ones(2, 7, 7, dtype=torch.bool))
    same(layer.to(dtype)(x.to(dtype)), wanted.to(dtype))
