"""Longformer against its attention in transformers 5.24, and against brute force.

Theirs is always bidirectional with a float32 softmax, and its ``attention_window`` counts both sides without the token
itself, 2(w - 1). The length must be a multiple of it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from comparison import (
    CAUSAL,
    DTYPES,
    PADDED,
    assert_parity,
    assert_softmax_under,
    copy_parameters,
    random_biases,
)
from torch import Tensor, nn

from attnlab.models.longformer import LongformerAttention

ORACLES = {
    "test_brute_force": ("torch", "scaled_dot_product_attention under the paper's pattern"),
    "test_transformers": ("transformers", "LongformerSelfAttention"),
}


@DTYPES
@CAUSAL
@PADDED
@pytest.mark.parametrize(
    ("B", "N", "H", "d", "window", "g"), [(2, 13, 3, 5, 3, 2), (1, 17, 1, 7, 2, 1), (3, 199, 2, 5, 11, 7)]
)
def test_brute_force(
    dtype: torch.dtype, causal: bool, padded: bool, B: int, N: int, H: int, d: int, window: int, g: int
) -> None:
    torch.manual_seed(0)
    layer = random_biases(LongformerAttention(H * d, H, window_size=window, num_global=g, causal=causal).to(dtype))
    nn.init.normal_(layer.qkv_global.weight, std=0.3)

    def heads(attend: Callable[[nn.Linear], Tensor]) -> Tensor:
        return torch.cat([attend(layer.qkv_global)[:, :, :g], attend(layer.qkv)[:, :, g:]], 2)

    assert_softmax_under(layer, lambda h, i, j: abs(i - j) < window or i < g or j < g, (B, N), padded, heads)


@DTYPES
@PADDED
@pytest.mark.parametrize(
    ("B", "N", "H", "d", "window", "g"), [(2, 24, 3, 5, 3, 2), (1, 16, 2, 3, 3, 1), (3, 60, 1, 7, 6, 5)]
)
def test_transformers(dtype: torch.dtype, padded: bool, B: int, N: int, H: int, d: int, window: int, g: int) -> None:
    pytest.importorskip("transformers")
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    sizes = {"hidden_size": H * d, "num_attention_heads": H, "attention_window": [2 * (window - 1)]}
    torch.manual_seed(0)
    theirs = random_biases(LongformerSelfAttention(LongformerConfig(**sizes, attention_probs_dropout_prob=0.0), 0))
    theirs = theirs.to(dtype)
    layer = LongformerAttention(H * d, H, window_size=window, num_global=g).to(dtype)
    layer.output = nn.Identity()  # type: ignore[assignment]

    def pairs(read: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
        projections = [getattr(theirs, f"{part}{end}") for end in ("", "_global") for part in ("query", "key", "value")]
        return [
            (read(p), torch.cat([read(getattr(part, name)) for part in parts]))
            for own, parts in ((layer.qkv, projections[:3]), (layer.qkv_global, projections[3:]))
            for name, p in own.named_parameters()
        ]

    def call(x: Tensor, allowed: Tensor) -> tuple[Tensor, None]:
        real, is_global = allowed[:, 0, 0], (torch.arange(N) < g).expand(B, N)
        mask = torch.where(real, torch.where(is_global, 10000.0, 0.0), -10000.0).to(dtype)
        return theirs(x, mask, ~real, is_global & real, True)[0], None

    copy_parameters(pairs)
    assert_parity(layer, call, pairs, (B, N), padded, 1e-5)
