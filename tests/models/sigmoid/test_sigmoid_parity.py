"""Sigmoid attention against x-transformers 2.31 and the paper's formula.

x-transformers does not subtract log n, so it receives -log n as a bias. The paper uses one n for all rows; this layer
counts the permitted keys of each row, which is the same for rows that attend to all keys.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import (
    CAUSAL,
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

from attnlab import masks
from attnlab.models.sigmoid import SigmoidAttention

ORACLES = {"test_x_transformers": ("x-transformers", "Attention, sigmoid")}

SHAPES = pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 3, 4), (1, 13, 1, 2), (3, 5, 5, 6)])


def layer_of(H: int, d: int, dtype: torch.dtype = torch.float64, **options: Any) -> SigmoidAttention:
    torch.manual_seed(0)
    return random_biases(SigmoidAttention(H * d, H, **options).to(dtype))


@SHAPES
@CAUSAL
@PADDED
@DTYPES
def test_x_transformers(dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = pytest.importorskip("x_transformers.attend").Attend(sigmoid=True, causal=causal, heads=H)
    layer, x = layer_of(H, d, dtype, causal=causal), random(B, N, H * d, dtype=dtype).requires_grad_()
    lengths, real = padding_lengths(B, N, padded)
    allowed = real[:, None, :].expand(B, N, N)
    n = (allowed.tril() if causal else allowed).sum(-1).to(dtype)
    heads, intermediates = theirs(*heads_of(layer.qkv, x, H), mask=real, attn_bias=-n.log()[:, None, :, None])
    mask = masks.padding(lengths) if padded else None
    assert_same(layer.attention_weights(x, mask=mask), intermediates.post_softmax_attn, TOLERANCE[dtype])
    sources = [x, *layer.parameters()]
    expected = layer.output(heads.transpose(1, 2).flatten(2))[real]
    assert_same_gradients((layer(x, mask=mask)[real], sources), (expected, sources))


@SHAPES
@CAUSAL
def test_formula_of_the_paper(causal: bool, B: int, N: int, H: int, d: int) -> None:
    """``Σ_j σ(Q_i K_jᵀ / √d_k - log N) V_j``: the last row, and with a bias of log n_i - log N all rows."""
    layer, x = layer_of(H, d, causal=causal), random(B, N, H * d).requires_grad_()
    Q, K, V = heads_of(layer.qkv, x, H)
    weights = 1 / (1 + torch.exp(math.log(N) - Q @ K.mT / math.sqrt(d)))
    weights = weights.tril() if causal else weights
    expected, sources = layer.output((weights @ V).transpose(1, 2).flatten(2)), [x, *layer.parameters()]
    assert_same_gradients((layer(x)[:, -1], sources), (expected[:, -1], sources))
    n = torch.arange(N, dtype=torch.float64) + 1 if causal else torch.full((N,), float(N), dtype=torch.float64)
    ours = layer(x, attn_bias=(n / N).log()[:, None].expand(N, N))
    assert_same_gradients((ours, sources), (expected, sources))
