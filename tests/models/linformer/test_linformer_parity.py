"""Linformer attention against the linformer package, with separate and with shared projections."""

from __future__ import annotations

import pytest
import torch
from comparison import DTYPES, assert_same_gradients, random, random_biases

from attnlab.models.linformer import LinformerAttention

ORACLES = {"test_linformer": ("linformer", "LinformerSelfAttention")}


@DTYPES
@pytest.mark.parametrize("with_context", [False, True])
@pytest.mark.parametrize(("B", "N", "H", "d", "k"), [(2, 7, 3, 5, 4), (1, 11, 2, 3, 13), (3, 5, 5, 7, 1)])
def test_linformer(dtype: torch.dtype, with_context: bool, B: int, N: int, H: int, d: int, k: int) -> None:
    package = pytest.importorskip("linformer.linformer")  # not "linformer", which is this folder without the package
    torch.manual_seed(0)
    theirs = random_biases(package.LinformerSelfAttention(H * d, 11, k=k, heads=H).to(dtype))
    layer = LinformerAttention(H * d, H, max_length=11, rank=k, bias=True).to(dtype)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.cat([part.weight for part in (theirs.to_q, theirs.to_k, theirs.to_v)]))
        layer.output.load_state_dict(theirs.to_out.state_dict())
        layer.E.copy_(theirs.proj_k.T)
        layer.get_parameter("F").copy_(theirs.proj_v.T)
    x, context = (random(B, n, H * d, dtype=dtype).requires_grad_() for n in (N, 9))
    inputs = {"context": context} if with_context else {}
    expected = theirs(x, **inputs)
    gradients = torch.autograd.grad(expected.square().sum(), [theirs.proj_k, theirs.proj_v], retain_graph=True)
    ours = layer(x, **inputs)
    sources = [x, *inputs.values()]
    assert_same_gradients((ours, sources), (expected, sources))
    actual = torch.autograd.grad(ours.square().sum(), [layer.E, layer.get_parameter("F")])
    for mine, other in zip(actual, gradients, strict=True):
        scale = 1 + other.abs().max()
        torch.testing.assert_close(
            mine / scale, other.T / scale, rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-5
        )
