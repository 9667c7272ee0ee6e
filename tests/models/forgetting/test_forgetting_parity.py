"""Forgetting attention against the naive form of flash-linear-attention 0.6.

Theirs computes in float32 and is always causal. All else is compared with `models/forgetting/reference.py` in float64.
"""

from __future__ import annotations

import pytest
import torch
from comparison import DTYPES, assert_same_gradients, naive_of_fla, random, random_biases

from attnlab import masks
from attnlab.models.forgetting import ForgettingAttention

ORACLES = {"test_fla": ("fla-core", "naive forgetting attention")}


@DTYPES
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 11, 3, 5), (1, 17, 1, 2), (3, 7, 5, 4)])
def test_fla(dtype: torch.dtype, window: int | None, contiguous: bool, B: int, N: int, H: int, d: int) -> None:
    naive = naive_of_fla("forgetting_attn", "naive_forgetting_attn")
    torch.manual_seed(0)
    layer = random_biases(ForgettingAttention(H * d, H, causal=True).to(dtype))
    x = random(B, N, H * d, dtype=dtype).requires_grad_()
    mask = None if window is None else masks.sliding_window(window)
    if not contiguous:  # for any mask, by rows
        mask = masks.from_tensor((masks.causal() if mask is None else mask).materialize(N))
    Q, K, V = (part.unflatten(-1, (H, d)) for part in layer.qkv(x).chunk(3, -1))
    gates = torch.nn.functional.logsigmoid(layer.forget(x))
    expected = layer.output(naive(Q, K, V, gates, window_size=window).flatten(2).to(dtype))
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x, mask=mask), sources), (expected, sources), 1e-5)
