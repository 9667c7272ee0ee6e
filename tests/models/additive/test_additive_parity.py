"""Additive attention against Keras 3.15's AdditiveAttention, with the projections as plain products.

Keras takes the queries, keys and values of one head. On PyTorch its product of attention weights and values is always
float32, so in float64 only its attention weights are compared.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from comparison import DTYPES, PADDED, assert_same_gradients, heads_of, padding_lengths, random, random_biases

from attnlab import masks
from attnlab.models.additive import AdditiveAttention

ORACLES = {"test_": ("keras", "AdditiveAttention")}


@pytest.fixture(scope="module")
def keras() -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    if keras.backend.backend() != "torch":
        pytest.skip("Keras uses another backend; set KERAS_BACKEND=torch")
    return keras


@DTYPES
@pytest.mark.parametrize(("causal", "cross"), [(True, False), (False, False), (False, True)])
@PADDED
@pytest.mark.parametrize(("B", "N", "M", "H", "d"), [(2, 11, 7, 3, 5), (1, 13, 3, 1, 2), (3, 5, 17, 7, 1)])
def test_keras(
    keras: Any, dtype: torch.dtype, causal: bool, cross: bool, padded: bool, B: int, N: int, M: int, H: int, d: int
) -> None:
    M = M if cross else N
    torch.manual_seed(0)
    layer = random_biases(AdditiveAttention(H * d, H, causal=causal).to(dtype))
    x, (lengths, real) = random(B, N, H * d, dtype=dtype).requires_grad_(), padding_lengths(B, M, padded)
    context = random(B, M, H * d, dtype=dtype) if cross else x
    Q, K, V = heads_of(layer.qkv, x, H)[0], *heads_of(layer.qkv, context, H)[1:]
    heads = []
    for head in range(H):
        theirs = keras.layers.AdditiveAttention(dtype=str(dtype).removeprefix("torch."))
        theirs.build([(B, N, d), (B, M, d), (B, M, d)])
        theirs.scale = layer.score[head]
        inputs = [Q[:, head], V[:, head], K[:, head]]  # in their order: query, value, key
        out, weights = theirs(inputs, mask=[None, real], use_causal_mask=causal, return_attention_scores=True)
        heads.append(out if dtype == torch.float32 else weights @ V[:, head])
    expected = layer.output(torch.cat(heads, -1))
    ours = layer(x, mask=masks.padding(lengths, max_length=M) if padded else None, context=context if cross else None)
    sources = [x, *layer.parameters()]
    assert_same_gradients((ours, sources), (expected, sources))
