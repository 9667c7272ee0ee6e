"""Multi-query attention against Falcon in transformers 5.24.

Falcon's projection has the order of ours: the queries of all heads, the key, the value. With ALiBi, Falcon divides the
bias by √d_k too, unlike the paper of ALiBi; ours receives that bias as ``attn_bias``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comparison import (
    CAUSAL,
    DTYPES,
    PADDED,
    TOLERANCE,
    additive,
    assert_parity,
    copy_parameters,
    from_transformers,
    no_rotation,
    padding_lengths,
    rotation_of,
)
from torch import Tensor

from attnlab.models.multiquery import MultiQueryAttention

ORACLES = {"test_": ("transformers", "FalconAttention")}

SHAPES = pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 4, 6), (1, 13, 1, 2), (3, 5, 2, 10)])


def falcon(H: int, d: int, dtype: torch.dtype) -> Any:
    options = {"multi_query": True, "new_decoder_architecture": False, "bias": True, "attention_dropout": 0.0}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    return from_transformers("falcon", "Falcon", dtype, hidden_size=H * d, num_attention_heads=H, **options, **rope)


def compare(
    theirs: Any, B: int, N: int, padded: bool, *, rotation: Any = None, bias: Tensor | None = None, **options: Any
) -> None:
    """``bias``, (B · H, 1, N), is Falcon's."""
    H, d, dtype = theirs.num_heads, theirs.head_dim, theirs.dense.weight.dtype
    layer = MultiQueryAttention(H * d, H, **options).to(dtype)
    rotation = no_rotation(N, d, dtype) if rotation is None else rotation

    def pairs(read: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
        modules = ((layer.qkv, theirs.query_key_value), (layer.output, theirs.dense))
        return [(read(p), read(getattr(other, name))) for own, other in modules for name, p in own.named_parameters()]

    def call(x: Tensor, allowed: Tensor) -> Any:
        mask = additive(allowed, dtype)
        return theirs(x, bias, mask, position_embeddings=rotation, output_attentions=True)

    copy_parameters(pairs)
    attn_bias = None if bias is None else bias.reshape(B, H, 1, N).expand(B, H, N, N) / d**0.5
    assert_parity(layer, call, pairs, (B, N), padded, TOLERANCE[dtype], attn_bias=attn_bias)


@SHAPES
@CAUSAL
@PADDED
@DTYPES
def test_falcon(dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, d: int) -> None:
    compare(falcon(H, d, dtype), B, N, padded, causal=causal)


@SHAPES
@CAUSAL
def test_falcon_with_rotary_positions(causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = falcon(H, d, torch.float32)
    compare(theirs, B, N, True, causal=causal, positions="rotary", rotation=rotation_of(theirs, N))


@SHAPES
@CAUSAL
@DTYPES
def test_falcon_with_alibi(dtype: torch.dtype, causal: bool, B: int, N: int, H: int, d: int) -> None:
    theirs = falcon(H, d, dtype)
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    bias = build_alibi_tensor(padding_lengths(B, N, True)[1].long(), H, dtype)
    compare(theirs, B, N, True, causal=causal, bias=bias)
