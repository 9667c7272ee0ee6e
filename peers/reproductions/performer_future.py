"""Causal performer-pytorch: the first output changes with the last token."""

import torch
from performer_pytorch import SelfAttention

torch.manual_seed(0)
layer, x = SelfAttention(dim=8, heads=2, dim_head=4, causal=True).eval(), torch.randn(1, 5, 8)
first = layer(x)[0, 0]
x[0, 4] *= 10
print(((layer(x)[0, 0] - first).abs().max() > 1e-3).item())
