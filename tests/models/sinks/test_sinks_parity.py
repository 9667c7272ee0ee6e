"""Attention with sinks against gpt-oss in transformers 5.24, and softmax off by one against its formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import (
    CAUSAL,
    PADDED,
    TOLERANCE,
    assert_parity_with_transformers,
    assert_same_gradients,
    from_transformers,
    heads_of,
    no_rotation,
    padding_lengths,
    parameters_of_transformers,
    random,
    random_biases,
    rotation_of,
)
from torch import nn

from attnlab import masks
from attnlab.models.sinks import SinkAttention

ORACLES = {"test_gpt_oss": ("transformers", "GptOssAttention")}

SHAPES = pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 3, 4), (1, 13, 1, 2), (3, 5, 5, 6)])


def gpt_oss(H: int, d: int, dtype: torch.dtype) -> Any:
    """Their layer, without a window and with sinks of both signs."""
    sizes = {"hidden_size": H * d, "num_attention_heads": H, "num_key_value_heads": H, "head_dim": d}
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    layer = from_transformers(
        "gpt_oss", "GptOss", dtype, layer_idx=1, attention_bias=True, rope_parameters=rope, **sizes
    )
    nn.init.normal_(layer.sinks, std=2)
    return layer


@SHAPES
@CAUSAL
@PADDED
@pytest.mark.parametrize(  # their cosines and sines are float32
    ("positions", "dtype"), [("none", torch.float32), ("none", torch.float64), ("rotary", torch.float32)]
)
def test_gpt_oss(
    positions: Any, dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, d: int
) -> None:
    theirs, layer = gpt_oss(H, d, dtype), SinkAttention(H * d, H, causal=causal, positions=positions).to(dtype)
    rotation = rotation_of(theirs, N) if positions == "rotary" else no_rotation(N, d // 2, dtype)
    pairs = parameters_of_transformers(layer, theirs, sink="sinks")
    assert_parity_with_transformers(
        layer, theirs, (B, N), padded, rotation, TOLERANCE[dtype], pairs=pairs, weights=True
    )


@SHAPES
@CAUSAL
@PADDED
def test_softmax_off_by_one(padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    """``exp(s_ij) / (1 + Σ_j exp(s_ij))`` as Miller writes it."""
    torch.manual_seed(0)
    layer, x = random_biases(SinkAttention(H * d, H, sink="zero", causal=causal).double()), random(B, N, H * d)
    lengths, real = padding_lengths(B, N, padded)
    allowed = real[:, None, None, :].expand(B, 1, N, N)
    Q, K, V = heads_of(layer.qkv, x, H)
    powers = torch.exp(Q @ K.mT / math.sqrt(d)) * (allowed.tril() if causal else allowed)
    heads = powers / (1 + powers.sum(-1, keepdim=True)) @ V
    expected = layer.output(heads.transpose(1, 2).flatten(2))[real]
    ours = layer(x, mask=masks.padding(lengths) if padded else None)[real]
    parameters = [*layer.qkv.parameters(), *layer.output.parameters()]
    assert_same_gradients((ours, parameters), (expected, parameters))
