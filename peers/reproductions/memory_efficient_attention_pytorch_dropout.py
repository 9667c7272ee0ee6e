"""Without memory_efficient=True, its default, the dropout is taken and never used."""

import torch
from memory_efficient_attention_pytorch import Attention

torch.manual_seed(0)
layer, x = Attention(dim=12, dim_head=4, heads=3, dropout=0.5).train(), torch.randn(1, 5, 12)
assert not torch.equal(layer(x), layer(x)), "two answers in training, with dropout=0.5, are equal"
