"""Self-attention with one head against PyTorch's layer of one head."""

from __future__ import annotations

import pytest
import torch
from comparison import CAUSAL, DTYPES, PADDED, assert_same_gradients, padding_lengths, random, random_biases
from torch import nn

from attnlab import masks
from attnlab.models.selfhead import SelfAttention

ORACLES = {"test_": ("torch", "nn.MultiheadAttention, one head")}


@DTYPES
@CAUSAL
@PADDED
@pytest.mark.parametrize(("B", "N", "D"), [(2, 7, 5), (1, 13, 2), (3, 199, 11)])
def test_torch(dtype: torch.dtype, causal: bool, padded: bool, B: int, N: int, D: int) -> None:
    torch.manual_seed(0)
    layer = random_biases(SelfAttention(D, causal=causal).to(dtype))
    theirs = nn.MultiheadAttention(D, 1, batch_first=True, dtype=dtype)
    parts = [layer.query, layer.key, layer.value]
    theirs.in_proj_weight.data = torch.cat([part.weight.data for part in parts])
    theirs.in_proj_bias.data = torch.cat([part.bias.data for part in parts])
    theirs.out_proj.load_state_dict(layer.output.state_dict())
    x, (lengths, real) = random(B, N, D, dtype=dtype).requires_grad_(), padding_lengths(B, N, padded)
    forbidden = torch.ones(N, N, dtype=torch.bool).triu(1) if causal else None
    out = theirs(x, x, x, key_padding_mask=~real, attn_mask=forbidden, need_weights=False)[0]
    ours = layer(x, mask=masks.padding(lengths) if padded else None)
    assert_same_gradients((ours, [x]), (out, [x]))
