"""Grouped-query attention against Llama's in transformers 5.24, whose softmax is exact in ``sdpa``."""

from __future__ import annotations

import pytest
import torch
from brute import lengths_of, tokens

from attnlab import masks
from attnlab.models.groupedquery import GroupedQueryAttention

ORACLES = {"test_": ("transformers", "LlamaAttention")}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("B", "N", "H", "shared", "d", "D"), [(2, 7, 6, 3, 4, 18), (1, 13, 4, 1, 2, 20), (3, 5, 3, 3, 6, 21)]
)
def test_llama(
    dtype: torch.dtype, padded: bool, causal: bool, B: int, N: int, H: int, shared: int, d: int, D: int
) -> None:
    pytest.importorskip("transformers")
    from peers.adapters.base import join_projections
    from peers.adapters.transformers import Llama

    torch.manual_seed(0)
    sizes = {"num_key_value_heads": shared, "head_dim": d}
    theirs = Llama(D, H, attention_bias=True, attn_implementation="sdpa", **sizes).inner.to(dtype)
    layer = GroupedQueryAttention(D, H, num_kv_heads=shared, head_dim=d, causal=causal).to(dtype)
    parts = [theirs.q_proj, theirs.k_proj, theirs.v_proj]
    for part in parts:
        torch.nn.init.normal_(part.bias)
    join_projections(parts, layer.qkv)
    layer.output.load_state_dict(theirs.o_proj.state_dict())
    a, b = (tokens(B, N, D, dtype=dtype).requires_grad_() for _ in range(2))
    lengths = lengths_of(B, N, padded)
    real = torch.arange(N) < lengths[:, None]
    permitted = real[:, None, None, :].expand(B, 1, N, N)
    permitted = permitted.tril() if causal else permitted
    still = torch.ones(1, N, d, dtype=dtype), torch.zeros(1, N, d, dtype=dtype)
    blocked = torch.zeros(permitted.shape, dtype=dtype).masked_fill(~permitted, torch.finfo(dtype).min)
    wanted = theirs(a, still, blocked)[0][real]
    ours = layer(b, mask=masks.padding(lengths) if padded else None)[real]
    torch.testing.assert_close(ours, wanted, rtol=0, atol=TOLERANCE[dtype])
    wave = tokens(*ours.shape, dtype=dtype) / len(ours) ** 0.5
    (wanted * wave).sum().backward()
    (ours * wave).sum().backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=TOLERANCE[dtype])
    weights = torch.cat([part.weight.grad for part in parts])
    torch.testing.assert_close(layer.qkv.weight.grad, weights, rtol=0, atol=10 * TOLERANCE[dtype])
