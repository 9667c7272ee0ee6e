"""DeltaNet against two naive forms of flash-linear-attention: step by step, in float32, and in chunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comparison import DTYPES, TOLERANCE, assert_same_gradients, naive_of_fla, random
from torch import Tensor

from attnlab.models.deltanet import DeltaNet
from attnlab.ops.scan.functions import l2_norm

ORACLES = {
    "test_steps": ("fla-core", "naive recurrent delta rule"),
    "test_chunks": ("fla-core", "naive chunkwise delta rule"),
}


def inputs(layer: DeltaNet, x: Tensor) -> list[Tensor]:
    """q, k, v and β of their functions, (B, H, N, d) and (B, H, N)."""
    q, k, v = (F.silu(part).unflatten(-1, (layer.num_heads, -1)) for part in layer.qkv(x).split(layer.qkv_sizes, -1))
    beta = layer.strength(x).sigmoid()
    return [part.transpose(1, 2) for part in (l2_norm(q), l2_norm(k), v, beta)]


def made(H: int, d: int, w: int, dtype: torch.dtype) -> DeltaNet:
    torch.manual_seed(0)
    return DeltaNet(13, H, key_dim=d, value_dim=w, short_conv=0, output_norm=False).to(dtype)


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "d", "w"), [(2, 11, 3, 5, 7), (1, 131, 2, 7, 3)])
def test_steps(dtype: torch.dtype, B: int, N: int, H: int, d: int, w: int) -> None:
    naive, layer = naive_of_fla("delta_rule", "delta_rule_recurrence"), made(H, d, w, dtype)
    x = random(B, N, 13, dtype=dtype).requires_grad_()
    theirs = naive(*inputs(layer, x))[0].transpose(1, 2).flatten(2)
    sources = [x, *layer.parameters()]
    assert_same_gradients((layer(x), sources), (layer.output(theirs), sources), 1e-5)


@DTYPES
@pytest.mark.parametrize(("B", "N", "H", "d", "w"), [(2, 32, 3, 5, 7), (1, 160, 2, 7, 3)])
def test_chunks(dtype: torch.dtype, B: int, N: int, H: int, d: int, w: int) -> None:
    """Theirs needs a multiple of 32 tokens, and has no gradients: it changes a tensor in place."""
    naive, layer = naive_of_fla("delta_rule", "delta_rule_chunkwise"), made(H, d, w, dtype)
    x = random(B, N, 13, dtype=dtype)
    with torch.no_grad():
        theirs = naive(*inputs(layer, x))[0].transpose(1, 2).flatten(2)
        torch.testing.assert_close(layer(x), layer.output(theirs), rtol=0, atol=TOLERANCE[dtype])
