"""Forgetting attention against the naive form of flash-linear-attention 0.6.

Theirs computes in float32 and is always causal. All else is compared with `models/forgetting/reference.py` in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import naive_of_fla
from torch import Tensor

from attnlab import masks
from attnlab.models.forgetting import ForgettingAttention

ORACLES = {"test_fla": ("fla-core", "naive forgetting attention")}


@pytest.fixture(scope="module")
def naive() -> Any:
    return naive_of_fla("forgetting_attn", "naive_forgetting_attn")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 11, 3, 5), (1, 17, 1, 2), (3, 7, 5, 4)])
def test_fla(naive: Any, dtype: torch.dtype, window: int | None, folded: bool, B: int, N: int, H: int, d: int) -> None:
    torch.manual_seed(0)
    layer = ForgettingAttention(H * d, H, causal=True).to(dtype)
    for bias in (layer.qkv.bias, layer.output.bias, layer.forget.bias):
        torch.nn.init.normal_(bias)
    x = torch.randn(B, N, H * d, dtype=torch.float64).to(dtype)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    mask = None if window is None else masks.sliding_window(window)
    if not folded:  # for any mask, by rows
        mask = masks.from_tensor((masks.causal() if mask is None else mask).materialize(N))

    Q, K, V = (part.unflatten(-1, (H, d)) for part in layer.qkv(a).chunk(3, -1))
    gates = torch.nn.functional.logsigmoid(layer.forget(a))
    expected = layer.output(naive(Q, K, V, gates, window_size=window).flatten(2).to(dtype))
    ours = layer(b, mask=mask)

    def same(found: Tensor, true: Tensor) -> None:
        torch.testing.assert_close(found, true, rtol=0, atol=1e-5)

    same(ours, expected)
    direction = torch.randn(B, N, H * d, dtype=torch.float64).to(dtype) / N
    parameters = list(layer.parameters())
    true = torch.autograd.grad((expected * direction).sum(), [a, *parameters])
    for found, gradient in zip(torch.autograd.grad((ours * direction).sum(), [b, *parameters]), true, strict=True):
        same(found, gradient)
