"""With memory_efficient=False, the default, dropout is accepted but never applied."""

import torch
from memory_efficient_attention_pytorch import Attention

torch.manual_seed(0)
layer, x = Attention(dim=12, dim_head=4, heads=3, dropout=0.5).train(), torch.randn(1, 5, 12)
assert not torch.equal(layer(x), layer(x)), "two calls in training mode with dropout=0.5 are equal"
