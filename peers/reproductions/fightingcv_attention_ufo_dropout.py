"""The dropout layer is created but never applied."""

import torch
from fightingcv_attention.attention.UFOAttention import UFOAttention

torch.manual_seed(0)
layer, x = UFOAttention(d_model=12, d_k=12, d_v=12, h=3, dropout=0.5).train(), torch.randn(1, 5, 12)
assert not torch.equal(layer(x, x, x), layer(x, x, x)), "two calls in training mode with dropout=0.5 are equal"
