"""RWKV-7 against the naive recurrence of flash-linear-attention, which computes in float32."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from comparison import DTYPES, assert_same_gradients, naive_of_fla, random, random_biases

from attnlab.models.rwkv7 import RWKV7

ORACLES = {"test_fla": ("fla-core", "naive recurrent DPLR")}


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 11, 3, 5), (1, 71, 2, 7), (3, 7, 5, 3)])
def test_fla(dtype: torch.dtype, B: int, N: int, H: int, d: int) -> None:
    naive = naive_of_fla("generalized_delta_rule/dplr", "dplr_recurrence")
    torch.manual_seed(0)
    layer, x = RWKV7(H * d, H).to(dtype), random(B, N, H * d, dtype=dtype).requires_grad_()
    for part in (layer.decay, layer.rate):
        torch.nn.init.normal_(part.down.weight, std=0.1)
    assert layer.head_norm is not None
    random_biases(layer.head_norm)
    mixed = (x + (F.pad(x, (0, 0, 1, -1)) - x) * part for part in layer.shift)
    projections = (layer.receptance, layer.key, layer.value, layer.decay, layer.rate, layer.head_gate)
    outputs = (project(part) for project, part in zip(projections, mixed, strict=True))
    r, k, v, w, a, g = (out.unflatten(-1, (H, d)).transpose(1, 2) for out in outputs)
    removal, replacement, rho = (part.view(H, 1, d) for part in (layer.removal, layer.replacement, layer.bonus))
    w, a, kappa, k = -math.exp(-0.5) * w.sigmoid(), a.sigmoid(), k * removal, k * (1 + (a.sigmoid() - 1) * replacement)
    kappa = kappa / (kappa.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    inputs = (r * math.sqrt(d), k, v, -kappa, kappa * a, w)
    heads, _ = naive(*(part.float() for part in inputs))
    flat = heads.to(dtype).transpose(1, 2).reshape(B * N, H * d)
    flat = F.group_norm(flat, H, layer.head_norm.weight, layer.head_norm.bias, layer.head_norm.eps)
    heads = flat.view(B, N, H, d).transpose(1, 2) + (r * rho * k).sum(-1, keepdim=True) * v
    theirs = layer.output((heads * g).transpose(1, 2).flatten(2))
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x), sources), (theirs, sources), 2e-5)
