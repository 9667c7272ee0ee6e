"""Padded by itself to whole windows, the last tokens look at that padding: a mask of only real tokens changes them."""

import torch
from local_attention import LocalAttention

torch.manual_seed(0)
layer, x = LocalAttention(dim=8, window_size=4, autopad=True), torch.randn(1, 3, 6, 8)
plain, masked = layer(x, x, x), layer(x, x, x, mask=torch.ones(1, 6, dtype=torch.bool))
off = (plain - masked).abs().max()
assert off < 1e-5, f"6 tokens in windows of 4 are off by {off:.2f}"
