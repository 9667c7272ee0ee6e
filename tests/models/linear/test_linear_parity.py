"""Linear attention against the naive recurrence of flash-linear-attention, which is causal and computes in float32."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from brute import same_with_gradients, tokens

from attnlab.models.linear import LinearAttention

ORACLES = {"test_fla": ("fla-core", "naive recurrent linear attention")}


@pytest.fixture(scope="module")
def naive() -> Any:
    """Their function, loaded from its file: the package needs Triton."""
    pytest.importorskip("einops")
    package = importlib.util.find_spec("fla")
    if package is None or not package.submodule_search_locations:
        pytest.skip("flash-linear-attention is not installed")
    path = f"{package.submodule_search_locations[0]}/ops/linear_attn/naive.py"
    spec = importlib.util.spec_from_file_location("fla_naive_linear", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.naive_recurrent_linear_attn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 11, 3, 5), (1, 131, 2, 7), (3, 7, 5, 3)])
def test_fla(naive: Any, dtype: torch.dtype, B: int, N: int, H: int, d: int) -> None:
    torch.manual_seed(0)
    layer = LinearAttention(H * d, H, causal=True).to(dtype)
    torch.nn.init.normal_(layer.qkv.bias)
    x = tokens(B, N, H * d, dtype=dtype).requires_grad_()
    q, k, v = (part.unflatten(-1, (H, d)) for part in layer.qkv(x).chunk(3, -1))
    theirs, _ = naive(F.elu(q) + 1, F.elu(k) + 1, v, normalize=True)
    same_with_gradients(layer(x), layer.output(theirs.flatten(2)), [x, *layer.parameters()], 2e-5)
