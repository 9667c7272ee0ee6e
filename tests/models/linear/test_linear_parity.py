"""Linear attention against the naive recurrence of flash-linear-attention, which is causal and computes in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from brute import same_with_gradients, tokens
from comparison import naive_of_fla

from attnlab.models.linear import LinearAttention

ORACLES = {"test_fla": ("fla-core", "naive recurrent linear attention")}


@pytest.fixture(scope="module")
def naive() -> Any:
    return naive_of_fla("linear_attn", "naive_recurrent_linear_attn")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 11, 3, 5), (1, 131, 2, 7), (3, 7, 5, 3)])
def test_fla(naive: Any, dtype: torch.dtype, B: int, N: int, H: int, d: int) -> None:
    torch.manual_seed(0)
    layer = LinearAttention(H * d, H, causal=True).to(dtype)
    torch.nn.init.normal_(layer.qkv.bias)
    x = tokens(B, N, H * d, dtype=dtype).requires_grad_()
    q, k, v = (part.unflatten(-1, (H, d)) for part in layer.qkv(x).chunk(3, -1))
    theirs, _ = naive(F.elu(q) + 1, F.elu(k) + 1, v, normalize=True)
    same_with_gradients(layer(x), layer.output(theirs.flatten(2)), [x, *layer.parameters()], 2e-5)
