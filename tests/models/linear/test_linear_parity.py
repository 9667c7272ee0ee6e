"""Linear attention against the naive recurrence of flash-linear-attention, which is causal and computes in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comparison import DTYPES, assert_same_gradients, naive_of_fla, random, random_biases

from attnlab.models.linear import LinearAttention

ORACLES = {"test_fla": ("fla-core", "naive recurrent linear attention")}


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 11, 3, 5), (1, 131, 2, 7), (3, 7, 5, 3)])
def test_fla(dtype: torch.dtype, B: int, N: int, H: int, d: int) -> None:
    naive = naive_of_fla("linear_attn", "naive_recurrent_linear_attn")
    torch.manual_seed(0)
    layer = random_biases(LinearAttention(H * d, H, causal=True).to(dtype))
    x = random(B, N, H * d, dtype=dtype).requires_grad_()
    q, k, v = (part.unflatten(-1, (H, d)) for part in layer.qkv(x).chunk(3, -1))
    theirs, _ = naive(F.elu(q) + 1, F.elu(k) + 1, v, normalize=True)
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x), sources), (layer.output(theirs.flatten(2).to(dtype)), sources), 2e-5)
