"""Strided and fixed sparse attention against PyTorch's attention under the sets A of the paper."""

from __future__ import annotations

import pytest
import torch
from brute import attended, heads_of, lengths_of, matrix, same_with_gradients, tokens

from attnlab import masks
from attnlab.models.strided import StridedAttention

ORACLES = {"test_": ("torch", "scaled_dot_product_attention under the paper's sets")}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def strided(h: int, heads: int, i: int, j: int, stride: int, summary: int) -> bool:
    """A^(1) = {i - l, ..., i} and A^(2) = {j : (i - j) mod l = 0}, in both directions if not causal."""
    return abs(i - j) <= stride if h < (heads + 1) // 2 else (i - j) % stride == 0


def fixed(h: int, heads: int, i: int, j: int, stride: int, summary: int) -> bool:
    """A^(1) = {j : ⌊j / l⌋ = ⌊i / l⌋} and A^(2) = {j : j mod l in {l - c, ..., l - 1}}."""
    return i // stride == j // stride if h < (heads + 1) // 2 else j % stride in range(stride - summary, stride)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("pattern", ["strided", "fixed"])
@pytest.mark.parametrize(
    ("B", "N", "H", "d", "stride", "summary"), [(2, 13, 3, 5, 3, 2), (1, 17, 2, 7, 5, 1), (3, 199, 5, 2, 13, 3)]
)
def test_brute_force(
    dtype: torch.dtype,
    causal: bool,
    padded: bool,
    pattern: str,
    B: int,
    N: int,
    H: int,
    d: int,
    stride: int,
    summary: int,
) -> None:
    torch.manual_seed(0)
    layer = StridedAttention(H * d, H, pattern=pattern, stride=stride, summary=summary, causal=causal).to(dtype)  # type: ignore[arg-type]
    torch.nn.init.normal_(layer.qkv.bias)
    x, lengths = tokens(B, N, H * d, dtype=dtype).requires_grad_(), lengths_of(B, N, padded)
    real = torch.arange(N) < lengths[:, None]
    rule = {"strided": strided, "fixed": fixed}[pattern]
    allowed = matrix(lambda h, i, j: rule(h, H, i, j, stride, summary), H, N, causal, real)
    theirs = layer.output(attended(*heads_of(layer.qkv, x, H), allowed).transpose(1, 2).flatten(2))
    ours = layer(x, mask=masks.padding(lengths) if padded else None)
    rows = allowed.any(-1).any(1)
    same_with_gradients(ours[rows], theirs[rows], [x, *layer.parameters()], TOLERANCE[dtype])
