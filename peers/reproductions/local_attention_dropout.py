"""The option dropout of LocalMHA is accepted but never applied."""

import torch
from local_attention.transformer import LocalMHA

torch.manual_seed(0)
layer, x = LocalMHA(dim=12, dim_head=4, heads=3, window_size=4, dropout=0.5).train(), torch.randn(1, 8, 12)
assert not torch.equal(layer(x), layer(x)), "two calls in training mode with dropout=0.5 are equal"
