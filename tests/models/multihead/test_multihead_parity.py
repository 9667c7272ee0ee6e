"""Multi-head attention against PyTorch's own layer, which takes a mask of the opposite polarity."""

from __future__ import annotations

import pytest
import torch
from comparison import CAUSAL, DTYPES, PADDED, assert_same_gradients, padding_lengths, random, random_biases
from torch import nn

from attnlab import masks
from attnlab.models.multihead import MultiAttention

ORACLES = {"test_": ("torch", "nn.MultiheadAttention")}


@DTYPES
@CAUSAL
@PADDED
@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 3, 5), (1, 13, 1, 2), (3, 199, 5, 3)])
def test_torch(dtype: torch.dtype, causal: bool, padded: bool, B: int, N: int, H: int, d: int) -> None:
    torch.manual_seed(0)
    theirs = random_biases(nn.MultiheadAttention(H * d, H, batch_first=True, dtype=dtype))
    layer = MultiAttention.from_torch(theirs, causal=causal)
    x, (lengths, real) = random(B, N, H * d, dtype=dtype).requires_grad_(), padding_lengths(B, N, padded)
    forbidden = torch.ones(N, N, dtype=torch.bool).triu(1) if causal else None
    out = theirs(x, x, x, key_padding_mask=~real, attn_mask=forbidden, need_weights=False)[0]
    ours = layer(x, mask=masks.padding(lengths) if padded else None)
    pairs = [(layer.qkv, "in_proj_"), (layer.output, "out_proj.")]
    names = [(p, f"{start}{name}") for own, start in pairs for name, p in own.named_parameters()]
    parameters = dict(theirs.named_parameters())
    assert_same_gradients((ours, [x, *(p for p, _ in names)]), (out, [x, *(parameters[name] for _, name in names)]))
