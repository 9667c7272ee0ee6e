"""Multi-head attention against PyTorch's own layer, which asks for a mask of the opposite polarity."""

from __future__ import annotations

import pytest
import torch
from brute import lengths_of, same_with_gradients, tokens
from torch import nn

from attnlab import masks
from attnlab.models.multihead import MultiAttention

ORACLES = {"test_": ("torch", "nn.MultiheadAttention")}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(("B", "N", "H", "d"), [(2, 7, 3, 5), (1, 13, 1, 2), (3, 199, 5, 3)])
def test_torch(dtype: torch.dtype, causal: bool, padded: bool, B: int, N: int, H: int, d: int) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(H * d, H, batch_first=True, dtype=dtype)
    nn.init.normal_(theirs.in_proj_bias)
    layer = MultiAttention.from_torch(theirs, causal=causal)
    x, lengths = tokens(B, N, H * d, dtype=dtype).requires_grad_(), lengths_of(B, N, padded)
    real = torch.arange(N) < lengths[:, None]
    forbidden = torch.ones(N, N, dtype=torch.bool).triu(1) if causal else None
    wanted = theirs(x, x, x, key_padding_mask=~real, attn_mask=forbidden, need_weights=False)[0]
    same_with_gradients(layer(x, mask=masks.padding(lengths) if padded else None), wanted, [x], TOLERANCE[dtype])
