"""Self-attention with one head against PyTorch's attention and its layer of one head."""

from __future__ import annotations

import pytest
import torch
from brute import lengths_of, same_with_gradients, tokens
from torch import nn

from attnlab import masks
from attnlab.models.selfhead import SelfAttention

ORACLES = {"test_": ("torch", "nn.MultiheadAttention, one head")}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("B", "N", "D"), [(2, 7, 5), (1, 13, 2), (3, 199, 11)])
def test_torch(dtype: torch.dtype, causal: bool, padded: bool, B: int, N: int, D: int) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(D, causal=causal).to(dtype)
    theirs = nn.MultiheadAttention(D, 1, bias=layer.query.bias is not None, batch_first=True, dtype=dtype)
    parts = [layer.query, layer.key, layer.value]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.out_proj.weight.copy_(layer.output.weight)
        if theirs.in_proj_bias is not None:
            theirs.in_proj_bias.copy_(torch.cat([part.bias.normal_() for part in parts]))
            theirs.out_proj.bias.copy_(layer.output.bias)
    x, lengths = tokens(B, N, D, dtype=dtype).requires_grad_(), lengths_of(B, N, padded)
    real = torch.arange(N) < lengths[:, None]
    forbidden = torch.ones(N, N, dtype=torch.bool).triu(1) if causal else None
    wanted = theirs(x, x, x, key_padding_mask=~real, attn_mask=forbidden, need_weights=False)[0]
    same_with_gradients(layer(x, mask=masks.padding(lengths) if padded else None), wanted, [x], TOLERANCE[dtype])
