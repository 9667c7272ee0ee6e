"""Additive attention: its core against Keras 3.15's AdditiveAttention, the layer around it by plain products.

Theirs takes queries, keys and values of one head as they are. Its weights are of float64 where it is told so; its
product with the values is of float32 on PyTorch, always, and is left out in float64.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from attnlab import masks
from attnlab.models.additive import AdditiveAttention

ORACLES = {"test_": ("keras", "AdditiveAttention")}

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    found = pytest.importorskip("keras")
    if found.backend.backend() != "torch":
        pytest.skip("Keras runs on another backend; set KERAS_BACKEND=torch")
    return found


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("crossed", [True, False])
@pytest.mark.parametrize(("B", "N", "M", "H", "d"), [(2, 11, 7, 3, 5), (1, 13, 3, 1, 2), (3, 5, 17, 7, 1)])
def test_keras(
    keras: Any, dtype: torch.dtype, causal: bool, padded: bool, crossed: bool, B: int, N: int, M: int, H: int, d: int
) -> None:
    M = M if crossed else N
    causal = causal and not crossed  # no place in another sequence is ahead
    torch.manual_seed(0)
    layer = AdditiveAttention(H * d, H, causal=causal).to(dtype)
    for part in (layer.qkv.bias, layer.output.bias, layer.score):
        torch.nn.init.normal_(part)
    x, other = (torch.randn(B, length, H * d, dtype=torch.float64).to(dtype) for length in (N, M))
    a, b = (x.clone().requires_grad_() for _ in range(2))
    lengths = torch.tensor([M - 2, M, M - 1][:B])
    real = torch.arange(M) < lengths[:, None] if padded else torch.ones(B, M, dtype=torch.bool)

    their_score = layer.score.detach().clone().requires_grad_()
    W, bias = layer.qkv.weight, layer.qkv.bias
    source = other if crossed else a
    Q = (a @ W[: H * d].T + bias[: H * d]).unflatten(-1, (H, d))
    K, V = ((source @ w.T + c).unflatten(-1, (H, d)) for w, c in zip(W.chunk(3)[1:], bias.chunk(3)[1:], strict=True))
    heads = []
    for head in range(H):
        theirs = keras.layers.AdditiveAttention(dtype=str(dtype).removeprefix("torch."))
        theirs.build([(B, N, d), (B, M, d), (B, M, d)])
        theirs.scale = their_score[head]
        given = [Q[:, :, head], V[:, :, head], K[:, :, head]]  # in their order: query, value, key
        out, weights = theirs(given, mask=[None, real], use_causal_mask=causal, return_attention_scores=True)
        heads.append(out if dtype == torch.float32 else weights @ V[:, :, head])
    wanted = layer.output(torch.cat(heads, -1))
    ours = layer(b, mask=masks.padding(lengths, max_length=M) if padded else None, context=other if crossed else None)

    def same(found: Tensor, true: Tensor) -> None:
        torch.testing.assert_close(found, true, rtol=0, atol=TOLERANCE[dtype])

    same(ours, wanted)
    wave = torch.randn(ours.shape, dtype=torch.float64).to(dtype) / N
    shared = [layer.qkv.weight, layer.qkv.bias, layer.output.weight, layer.output.bias]
    true = torch.autograd.grad((wanted * wave).sum(), [a, their_score, *shared])
    found = torch.autograd.grad((ours * wave).sum(), [b, layer.score, *shared])
    for one, gradient in zip(found, true, strict=True):
        same(one, gradient)
