"""Performer attention against performer-pytorch, not causal: its causal form depends on later tokens.

Its features are ``exp(...) + eps`` with eps = 1e-4 by default, which is not in the formula of the paper; here eps = 0.
"""

from __future__ import annotations

import pytest
import torch
from comparison import DTYPES, assert_same_gradients, heads_of, random, random_biases

from attnlab.models.performer import PerformerAttention

ORACLES = {"test_performer_pytorch": ("performer-pytorch", "softmax_kernel, linear_attention")}


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "d", "m"), [(2, 11, 3, 5, 7), (1, 67, 2, 7, 31), (3, 7, 5, 3, 1)])
def test_performer_pytorch(dtype: torch.dtype, B: int, N: int, H: int, d: int, m: int) -> None:
    theirs = pytest.importorskip("performer_pytorch.performer_pytorch")
    torch.manual_seed(0)
    layer = random_biases(PerformerAttention(H * d, H, num_features=m).to(dtype))
    x = random(B, N, H * d, dtype=dtype).requires_grad_()
    Q, K, V = heads_of(layer.qkv, x, H)
    q, k = (
        theirs.softmax_kernel(part, projection_matrix=layer.projection, is_query=is_query, eps=0.0)
        for part, is_query in ((Q, True), (K, False))
    )
    expected = layer.output(theirs.linear_attention(q, k, V).transpose(1, 2).flatten(2))
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x), sources), (expected, sources))
