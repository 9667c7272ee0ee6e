"""Differential attention against DiffLlama's in transformers 5.24.

Their norm has no gains; ours start at one. They order the queries and keys by softmax and then by head, we by head and
then by softmax.
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
    assert_parity_with_transformers,
    assert_same,
    from_transformers,
    no_rotation,
    rotation_of,
)
from torch import Tensor

from attnlab.models.differential import DifferentialAttention

ORACLES = {"test_": ("transformers", "DiffLlamaAttention")}

SHAPES = pytest.mark.parametrize(("B", "N", "H", "d", "D"), [(2, 7, 3, 4, 24), (1, 13, 1, 2, 4), (3, 5, 5, 6, 60)])
LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def diffllama(H: int, d: int, D: int, layer_idx: int, attention: str, dtype: torch.dtype) -> Any:
    sizes = {"hidden_size": D, "num_attention_heads": 2 * H, "num_key_value_heads": 2 * H, "head_dim": d}
    options = {"attention_bias": True, "rms_norm_eps": 1e-5, "lambda_std_dev": 0.5, "attn_implementation": attention}
    return from_transformers("diffllama", "DiffLlama", dtype, layer_idx=layer_idx, **sizes, **options)


def compare(theirs: Any, shape: tuple[int, int], padded: bool, rotation: Any, atol: float, **options: Any) -> None:
    D, H, d = theirs.o_proj.out_features, theirs.config.num_attention_heads // 2, theirs.head_dim
    dtype = theirs.o_proj.weight.dtype
    layer = DifferentialAttention(D, H, lambda_init=theirs.lambda_init, **options).to(dtype)
    with torch.no_grad():
        layer.lambda_qk.copy_(torch.stack([getattr(theirs, name) for name in LAMBDAS]))

    def pairs(read: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
        found = [(read(p), read(getattr(theirs.o_proj, name))) for name, p in layer.output.named_parameters()]
        for name, p in layer.qkv.named_parameters():
            parts = [read(getattr(getattr(theirs, f"{part}_proj"), name)) for part in "qkv"]
            rows = [part.unflatten(0, (2, H, d)).transpose(0, 1).flatten(0, 2) for part in parts]
            found.append((read(p), torch.cat(rows)))
        return found

    assert_parity_with_transformers(layer, theirs, shape, padded, rotation, atol, pairs=pairs)
    lambdas = torch.stack([getattr(theirs, name).grad for name in LAMBDAS])  # computed in float32
    assert layer.lambda_qk.grad is not None
    assert_same(layer.lambda_qk.grad, lambdas, 1e-5)


@SHAPES
@CAUSAL
@PADDED
@DTYPES
def test_diffllama(dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, d: int, D: int) -> None:
    theirs = diffllama(H, d, D, 2, "eager", dtype)  # its softmax is always float32
    compare(theirs, (B, N), padded, no_rotation(N, d, dtype), 1e-5, causal=causal)


@SHAPES
@CAUSAL
@PADDED
def test_diffllama_in_float64(padded: bool, causal: bool, B: int, N: int, H: int, d: int, D: int) -> None:
    theirs = diffllama(H, d, D, 1, "sdpa", torch.float64)
    with torch.no_grad():  # its λ is float32, and exact only where both terms are exp(0)
        theirs.lambda_q1.zero_()
        theirs.lambda_k2.zero_()
    compare(theirs, (B, N), padded, no_rotation(N, d, torch.float64), 1e-10, causal=causal)


@SHAPES
@CAUSAL
def test_each_query_is_rotated_separately(causal: bool, B: int, N: int, H: int, d: int, D: int) -> None:
    theirs = diffllama(H, d, D, 0, "eager", torch.float32)
    compare(theirs, (B, N), False, rotation_of(theirs, N), 1e-5, causal=causal, positions="rotary")
