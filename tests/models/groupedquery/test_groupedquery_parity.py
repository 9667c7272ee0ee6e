"""Grouped-query attention against Llama's in transformers 5.24, whose softmax is exact in ``sdpa``."""

from __future__ import annotations

import pytest
import torch
from comparison import (
    CAUSAL,
    DTYPES,
    PADDED,
    TOLERANCE,
    assert_parity_with_transformers,
    from_transformers,
    no_rotation,
)

from attnlab.models.groupedquery import GroupedQueryAttention

ORACLES = {"test_": ("transformers", "LlamaAttention")}


@DTYPES
@PADDED
@CAUSAL
@pytest.mark.parametrize(
    ("B", "N", "H", "shared", "d", "D"), [(2, 7, 6, 3, 4, 18), (1, 13, 4, 1, 2, 20), (3, 5, 3, 3, 6, 21)]
)
def test_llama(
    dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, shared: int, d: int, D: int
) -> None:
    sizes = {"hidden_size": D, "num_attention_heads": H, "num_key_value_heads": shared, "head_dim": d}
    theirs = from_transformers("llama", "Llama", dtype, attention_bias=True, attn_implementation="sdpa", **sizes)
    layer = GroupedQueryAttention(D, H, num_kv_heads=shared, head_dim=d, causal=causal).to(dtype)
    assert_parity_with_transformers(layer, theirs, (B, N), padded, no_rotation(N, d, dtype), TOLERANCE[dtype])
