"""Gated linear attention against the naive recurrence of flash-linear-attention, which computes in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comparison import DTYPES, assert_same_gradients, naive_of_fla, perturbed, random

from attnlab.models.gatedlinear import GatedLinearAttention

ORACLES = {"test_fla": ("fla-core", "naive recurrent gated linear attention")}


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "d", "w"), [(2, 11, 3, 4, 5), (1, 131, 2, 3, 7), (3, 7, 5, 2, 3)])
def test_fla(dtype: torch.dtype, B: int, N: int, H: int, d: int, w: int) -> None:
    naive = naive_of_fla("gla", "naive_recurrent_gla")
    torch.manual_seed(0)
    layer = perturbed(GatedLinearAttention(H * w, H, key_dim=d, decay_rank=2)).to(dtype)
    x = random(B, N, H * w, dtype=dtype).requires_grad_()
    q, k, v = (part.unflatten(-1, (H, -1)) for part in layer.qkv(x).split(layer.qkv_sizes, -1))
    gates = F.logsigmoid(layer.decay(x)).unflatten(-1, (H, d)) / 16
    heads, _ = naive(q, k, v, gates)
    assert layer.norm is not None
    assert layer.gate is not None
    heads = F.rms_norm(heads, (w,), layer.norm.weight, layer.norm.eps).flatten(2)
    theirs = layer.output(F.silu(layer.gate(x)) * heads)
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x), sources), (theirs, sources), 2e-5)
