"""MesaNet against the exact naive form of flash-linear-attention, which computes in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comparison import DTYPES, assert_same_gradients, naive_of_fla, random

from attnlab.models.mesa import MesaNet
from attnlab.ops.scan.functions import l2_norm

ORACLES = {"test_fla": ("fla-core", "naive exact MesaNet")}


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 11, 3, 5), (1, 67, 2, 7)])
def test_fla(dtype: torch.dtype, B: int, N: int, H: int, d: int) -> None:
    naive = naive_of_fla("mesa_net", "naive_mesa_net_exact")
    torch.manual_seed(0)
    layer = MesaNet(H * d, H, short_conv=0, output_norm=False).to(dtype)
    x = random(B, N, H * d, dtype=dtype).requires_grad_()
    q, k, v = (F.silu(part).unflatten(-1, (H, -1)) for part in layer.qkv(x).chunk(3, -1))
    g = -layer.decay.log_rate.exp() * F.softplus(layer.step(x) + layer.decay.offset)
    theirs, *_ = naive(l2_norm(q), l2_norm(k), v, g, layer.regularization(), layer.strength(x).sigmoid())
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x), sources), (layer.output(theirs.flatten(2).to(dtype)), sources), 2e-5)
