"""memory-efficient-attention-pytorch without memory_efficient=True: dropout is never applied."""

import torch
from memory_efficient_attention_pytorch import Attention

torch.manual_seed(0)
layer, x = Attention(dim=8, heads=2, dim_head=4, dropout=0.9).train(), torch.randn(1, 5, 8)
print(torch.equal(layer(x), layer(x)))
