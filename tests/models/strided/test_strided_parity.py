"""Strided and fixed sparse attention against PyTorch's attention under the sets A of the paper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comparison import CAUSAL, DTYPES, PADDED, assert_softmax_under, random_biases

from attnlab.models.strided import StridedAttention

ORACLES = {"test_": ("torch", "scaled_dot_product_attention under the paper's sets")}


@DTYPES
@CAUSAL
@PADDED
@pytest.mark.parametrize("pattern", ["strided", "fixed"])
@pytest.mark.parametrize(
    ("B", "N", "H", "d", "stride", "c"), [(2, 13, 3, 5, 3, 2), (1, 17, 2, 7, 5, 1), (3, 199, 5, 2, 13, 3)]
)
def test_brute_force(
    dtype: torch.dtype,
    causal: bool,
    padded: bool,
    pattern: Any,
    B: int,
    N: int,
    H: int,
    d: int,
    stride: int,
    c: int,
) -> None:
    torch.manual_seed(0)
    layer = StridedAttention(H * d, H, pattern=pattern, stride=stride, summary=c, causal=causal).to(dtype)

    def strided(h: int, i: int, j: int) -> bool:
        """A^(1) = {i - l, ..., i} and A^(2) = {j : (i - j) mod l = 0}, in both directions if not causal."""
        return abs(i - j) <= stride if h < (H + 1) // 2 else (i - j) % stride == 0

    def fixed(h: int, i: int, j: int) -> bool:
        """A^(1) = {j : ⌊j / l⌋ = ⌊i / l⌋} and A^(2) = {j : j mod l in {l - c, ..., l - 1}}."""
        return i // stride == j // stride if h < (H + 1) // 2 else j % stride in range(stride - c, stride)

    assert_softmax_under(random_biases(layer), strided if pattern == "strided" else fixed, (B, N), padded)
