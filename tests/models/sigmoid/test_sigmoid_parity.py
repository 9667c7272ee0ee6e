"""Sigmoid attention against x-transformers 2.31, and the paper's formula in a loop.

x-transformers has no -log n of its own: it is given as a bias. The paper's n is one for all rows; ours is what a row
may look at, which is the same where every row sees all.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnlab import masks
from attnlab.models.sigmoid import SigmoidAttention

ORACLES = {"test_x_transformers": ("x-transformers", "Attention, sigmoid")}

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SHAPES = pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 3, 4), (1, 13, 1, 2), (3, 5, 5, 6)])
CAUSAL = pytest.mark.parametrize("causal", [True, False])
PADDED = pytest.mark.parametrize("padded", [True, False])
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE))


def tokens(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def same(found: Tensor, true: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, true, rtol=0, atol=atol)


def made(H: int, d: int, dtype: torch.dtype = torch.float64, **options: Any) -> SigmoidAttention:
    torch.manual_seed(0)
    layer = SigmoidAttention(H * d, H, **options).to(dtype)
    nn.init.normal_(layer.qkv.bias)
    return layer


def heads(layer: SigmoidAttention, x: Tensor) -> list[Tensor]:
    return [part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1)]


def alike(layer: SigmoidAttention, x: Tensor, ours: Tensor, wanted: Tensor, atol: float) -> None:
    """The two answers, and the gradients of all that they are made of."""
    same(ours, wanted, atol)
    wave, sources = tokens(*ours.shape, dtype=ours.dtype) / ours.shape[0], [x, *layer.parameters()]
    for mine, true in zip(
        torch.autograd.grad((ours * wave).sum(), sources),
        torch.autograd.grad((wanted * wave).sum(), sources),
        strict=True,
    ):
        same(mine, true, atol)


@SHAPES
@CAUSAL
@PADDED
@DTYPES
def test_x_transformers(dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = pytest.importorskip("x_transformers.attend").Attend(sigmoid=True, causal=causal, heads=H)
    layer, x = made(H, d, dtype, causal=causal), tokens(B, N, H * d, dtype=dtype).requires_grad_()
    lengths = torch.tensor([N - 2, N, N - 1][:B]) if padded else torch.full((B,), N)
    real = torch.arange(N) < lengths[:, None]
    seen = real[:, None, :].expand(B, N, N)
    count = (seen.tril() if causal else seen).sum(-1).to(dtype)
    answer, between = theirs(*heads(layer, x), mask=real, attn_bias=-count.log()[:, None, :, None])
    mask = masks.padding(lengths) if padded else None
    same(layer.attention_weights(x, mask=mask), between.post_softmax_attn, TOLERANCE[dtype])
    wanted = layer.output(answer.transpose(1, 2).flatten(2))[real]
    alike(layer, x, layer(x, mask=mask)[real], wanted, TOLERANCE[dtype])


def by_the_paper(Q: Tensor, K: Tensor, V: Tensor, causal: bool, n: int) -> Tensor:
    """``Σ_j σ(Q_i K_jᵀ / √d_k - log n) V_j`` with one n for all rows, a number at a time."""
    rows = []
    for q, k, v in zip(Q.flatten(0, 1), K.flatten(0, 1), V.flatten(0, 1), strict=True):
        for i in range(len(q)):
            row = torch.zeros_like(v[0])
            for j in range(i + 1 if causal else len(k)):
                score = sum(q[i, c] * k[j, c] for c in range(q.shape[1])) / math.sqrt(q.shape[1])
                row = row + v[j] / (1 + torch.exp(math.log(n) - score))
            rows.append(row)
    return torch.stack(rows).reshape(V.shape)


@SHAPES
def test_the_formula_of_the_paper(B: int, N: int, H: int, d: int) -> None:
    layer, x = made(H, d), tokens(B, N, H * d).requires_grad_()
    wanted = layer.output(by_the_paper(*heads(layer, x), False, N).transpose(1, 2).flatten(2))
    alike(layer, x, layer(x), wanted, 1e-10)


@SHAPES
def test_causally_the_last_row_is_that_of_the_paper(B: int, N: int, H: int, d: int) -> None:
    layer, x = made(H, d, causal=True), tokens(B, N, H * d).requires_grad_()
    wanted = layer.output(by_the_paper(*heads(layer, x), True, N).transpose(1, 2).flatten(2))
    alike(layer, x, layer(x)[:, -1], wanted[:, -1], 1e-10)


@SHAPES
def test_the_n_of_the_paper_is_a_bias_away(B: int, N: int, H: int, d: int) -> None:
    layer, x = made(H, d, causal=True), tokens(B, N, H * d).requires_grad_()
    wanted = layer.output(by_the_paper(*heads(layer, x), True, N).transpose(1, 2).flatten(2))
    bias = ((torch.arange(N, dtype=torch.float64) + 1) / N).log()[:, None].expand(N, N)  # log n_i - log n
    alike(layer, x, layer(x, attn_bias=bias), wanted, 1e-10)
