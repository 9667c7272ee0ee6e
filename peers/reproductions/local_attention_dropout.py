"""The dropout of its layer of heads is taken, and never used."""

import torch
from local_attention.transformer import LocalMHA

torch.manual_seed(0)
layer, x = LocalMHA(dim=12, dim_head=4, heads=3, window_size=4, dropout=0.5).train(), torch.randn(1, 8, 12)
assert not torch.equal(layer(x), layer(x)), "two answers in training, with dropout=0.5, are equal"
