"""Retention against the naive parallel form of flash-linear-attention, which computes in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comparison import DTYPES, assert_same_gradients, naive_of_fla, perturbed, random

from attnlab.models.retention import Retention

ORACLES = {"test_fla": ("fla-core", "naive retention")}


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "d", "w"), [(2, 11, 3, 4, 5), (1, 131, 2, 6, 7), (3, 7, 5, 2, 3)])
def test_fla(dtype: torch.dtype, B: int, N: int, H: int, d: int, w: int) -> None:
    naive = naive_of_fla("retention", "naive_retention")
    torch.manual_seed(0)
    layer = perturbed(Retention(H * d, H, value_dim=w)).to(dtype)
    x = random(B, N, H * d, dtype=dtype).requires_grad_()
    q, k, v = (part.unflatten(-1, (H, -1)).transpose(1, 2) for part in layer.qkv(x).split(layer.qkv_sizes, -1))
    pairs = (torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) for t in (q, k))
    angles = torch.outer(torch.arange(N), 10_000 ** (-torch.arange(0, d, 2) / d)).double()
    rotation = torch.polar(torch.ones_like(angles), angles)
    q, k = (torch.view_as_real(t * rotation).flatten(-2).to(dtype) for t in pairs)
    assert layer.norm is not None
    assert layer.gate is not None
    heads = F.rms_norm(naive(q, k, v), (w,), layer.norm.weight, layer.norm.eps).transpose(1, 2).flatten(2)
    theirs = layer.output(F.silu(layer.gate(x)) * heads)
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x), sources), (theirs, sources), 2e-5)
