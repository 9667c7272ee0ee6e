"""Nyström attention against nystrom-attention and Nyströmformer in transformers 5.24, with the convolution.

nystrom-attention divides by norms over the whole batch and all heads, so it is compared with one sequence and one head.
In both, padding changes the landmarks, so it is not compared.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import DTYPES, assert_same_gradients, random, random_biases

from attnlab.models.nystrom import NystromAttention

ORACLES = {
    "test_nystrom_attention": ("nystrom-attention", "NystromAttention"),
    "test_transformers": ("transformers", "NystromformerSelfAttention"),
}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}


@DTYPES
@pytest.mark.parametrize(("n", "m"), [(12, 4), (15, 3), (7, 7)])
def test_nystrom_attention(dtype: torch.dtype, n: int, m: int) -> None:
    package = pytest.importorskip("nystrom_attention")
    torch.manual_seed(0)
    theirs = package.NystromAttention(5, dim_head=5, heads=1, num_landmarks=m, residual_conv_kernel=3, eps=0.0)
    random_biases(theirs.to(dtype))
    layer = NystromAttention(5, 1, num_landmarks=m, conv_kernel=3).to(dtype)
    with torch.no_grad():
        layer.qkv.weight.copy_(theirs.to_qkv.weight)
        layer.output.load_state_dict(theirs.to_out[0].state_dict())
        layer.get_parameter("conv.weight").copy_(theirs.res_conv.weight)
    x = random(1, n, 5, dtype=dtype).requires_grad_()
    try:
        torch.set_default_dtype(dtype)  # they make an identity of the default dtype
        expected = theirs(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_gradients((layer(x), [x]), (expected, [x]), TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize(("B", "m", "length", "H", "d"), [(2, 4, 3, 3, 5), (3, 3, 7, 2, 4)])
def test_transformers(dtype: torch.dtype, B: int, m: int, length: int, H: int, d: int) -> None:
    pytest.importorskip("transformers")
    from transformers import NystromformerConfig
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    n = m * length
    config = NystromformerConfig(
        hidden_size=H * d, num_attention_heads=H, num_landmarks=m, segment_means_seq_len=n, conv_kernel_size=5
    )
    torch.manual_seed(0)
    theirs: Any = random_biases(NystromformerSelfAttention(config).to(dtype).eval())
    theirs.init_option = "exact"  # norms of each matrix; their config cannot select it
    layer = NystromAttention(H * d, H, num_landmarks=m, conv_kernel=5).to(dtype).eval()
    with torch.no_grad():
        parts = theirs.query, theirs.key, theirs.value
        layer.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        layer.get_parameter("qkv.bias").copy_(torch.cat([part.bias for part in parts]))
        torch.nn.init.eye_(layer.output.weight)
        layer.get_parameter("conv.weight").copy_(theirs.conv.weight)
    x = random(B, n, H * d, dtype=dtype).requires_grad_()
    expected = theirs(x)[0]
    assert_same_gradients((layer(x), [x]), (expected, [x]), TOLERANCE[dtype])
