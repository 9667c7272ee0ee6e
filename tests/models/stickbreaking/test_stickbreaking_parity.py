"""Stick-breaking attention against the naive form of flash-linear-attention, which takes no mask."""

from __future__ import annotations

import pytest
import torch
from comparison import DTYPES, assert_same, assert_same_gradients, naive_of_fla, random, random_biases

from attnlab.models.stickbreaking import StickBreakingAttention

ORACLES = {"test_fla": ("fla-core", "naive stick-breaking attention")}


@DTYPES
@pytest.mark.parametrize("attend_current", [True, False])
@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 11, 3, 5), (1, 67, 2, 7), (3, 7, 5, 3)])
def test_fla(dtype: torch.dtype, attend_current: bool, B: int, N: int, H: int, d: int) -> None:
    naive = naive_of_fla("stickbreaking_attn", "naive_stickbreaking_attn")
    torch.manual_seed(0)
    layer = random_biases(StickBreakingAttention(H * d, H, attend_current=attend_current).to(dtype))
    x = random(B, N, H * d, dtype=dtype).requires_grad_()
    theirs, rest = naive(*(part.unflatten(-1, (H, d)) for part in layer.qkv(x).chunk(3, -1)), None, attend_current)
    assert_same(1 - layer.attention_weights(x).sum(-1), rest.mT, 1e-5 if dtype == torch.float32 else 1e-12)
    expected, sources = layer.output(theirs.flatten(2)), [x, *layer.parameters()]
    rows = slice(0 if attend_current else 1, None)  # the first token has no key: zeros here, the bias in theirs
    assert_same_gradients((layer(x)[:, rows], sources), (expected[:, rows], sources))
