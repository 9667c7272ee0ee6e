"""Tokens attend to the padding that fills the last window, unless a mask of only real tokens is passed."""

import torch
from local_attention import LocalAttention

torch.manual_seed(0)
layer, x = LocalAttention(dim=8, window_size=4, autopad=True), torch.randn(1, 3, 6, 8)
plain, masked = layer(x, x, x), layer(x, x, x, mask=torch.ones(1, 6, dtype=torch.bool))
difference = (plain - masked).abs().max()
assert difference < 1e-5, f"6 tokens in windows of 4 differ by {difference:.2f}"
