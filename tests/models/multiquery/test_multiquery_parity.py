"""Multi-query attention against Falcon in transformers 5.24.

Falcon's projection has the order of ours: the queries of all heads, the key, the value. With ALiBi, Falcon divides the
bias by √d_k too, unlike the paper of ALiBi; ours receives that bias as ``attn_bias``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnlab import masks
from attnlab.models.multiquery import MultiQueryAttention

ORACLES = {"test_": ("transformers", "FalconAttention")}

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SHAPES = pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 4, 6), (1, 13, 1, 2), (3, 5, 2, 10)])
CAUSAL = pytest.mark.parametrize("causal", [True, False])
PADDED = pytest.mark.parametrize("padded", [True, False])
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE))


def falcon(H: int, d: int, dtype: torch.dtype) -> Any:
    """Falcon's layer with random biases."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.falcon.modeling_falcon import FalconAttention

    config = transformers.FalconConfig(
        hidden_size=H * d,
        num_attention_heads=H,
        multi_query=True,
        new_decoder_architecture=False,
        bias=True,
        attention_dropout=0.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    layer = FalconAttention(config, layer_idx=0).to(dtype)
    for projection in (layer.query_key_value, layer.dense):
        nn.init.normal_(projection.bias)
    return layer


def check_parity(theirs: Any, B: int, N: int, padded: bool, atol: float, alibi: Any = None, **options: Any) -> None:
    """Compare outputs, attention weights and gradients; ``alibi`` computes Falcon's bias from the padding mask."""
    H, d, dtype = theirs.num_heads, theirs.head_dim, theirs.dense.weight.dtype
    rotation = options.pop("rotation", (torch.ones(1, N, d, dtype=dtype), torch.zeros(1, N, d, dtype=dtype)))
    layer = MultiQueryAttention(H * d, H, **options).to(dtype)
    layer.qkv.load_state_dict(theirs.query_key_value.state_dict())
    layer.output.load_state_dict(theirs.dense.state_dict())
    x = torch.randn(B, N, H * d, generator=torch.Generator().manual_seed(N), dtype=torch.float64).to(dtype)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    lengths = torch.tensor([N - 2, N, N - 1][:B]) if padded else torch.full((B,), N)
    real = torch.arange(N) < lengths[:, None]
    allowed = real[:, None, None, :].expand(B, 1, N, N)
    allowed = allowed.tril() if layer.causal else allowed
    blocked = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    bias = None if alibi is None else alibi(real.long(), H, dtype)
    expected, weights = theirs(a, bias, blocked, position_embeddings=rotation, output_attentions=True)
    options_of_ours = {
        "mask": masks.padding(lengths) if padded else None,
        "attn_bias": None if bias is None else bias.reshape(B, H, 1, N).expand(B, H, N, N) / d**0.5,
    }
    expected, ours = expected[real], layer(b, **options_of_ours)[real]

    def same(actual: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(actual, expected, rtol=0, atol=atol)

    same(ours, expected)
    same(layer.attention_weights(b, **options_of_ours).transpose(1, 2)[real], weights.transpose(1, 2)[real])
    wave = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype) / N
    (expected * wave).sum().backward()
    (ours * wave).sum().backward()
    same(b.grad, a.grad)
    for name in ("weight", "bias"):
        same(getattr(layer.qkv, name).grad, getattr(theirs.query_key_value, name).grad)
        same(getattr(layer.output, name).grad, getattr(theirs.dense, name).grad)


@SHAPES
@CAUSAL
@PADDED
@DTYPES
def test_falcon(dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    check_parity(falcon(H, d, dtype), B, N, padded, TOLERANCE[dtype], causal=causal)


@SHAPES
@CAUSAL
def test_falcon_with_rotary_positions(causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = falcon(H, d, torch.float32)
    from transformers.models.falcon.modeling_falcon import FalconRotaryEmbedding

    rotation = FalconRotaryEmbedding(theirs.config)(torch.zeros(1, N, H * d), torch.arange(N).unsqueeze(0))
    check_parity(theirs, B, N, True, 1e-5, causal=causal, positions="rotary", rotation=rotation)


@SHAPES
@CAUSAL
@DTYPES
def test_falcon_with_alibi(dtype: torch.dtype, causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = falcon(H, d, dtype)
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    check_parity(theirs, B, N, True, TOLERANCE[dtype], build_alibi_tensor, causal=causal)
