"""memory-efficient-attention-pytorch: a row that may look at nothing reads everything, the future too."""

import torch
from memory_efficient_attention_pytorch import Attention

torch.manual_seed(0)
layer, x = Attention(dim=8, heads=2, dim_head=4, causal=True), torch.randn(1, 3, 8)
real = torch.tensor([[False, True, True]])
first = layer(x, mask=real)[0, 0]
x[0, 2] += 1
print(((layer(x, mask=real)[0, 0] - first).abs().max() > 1e-3).item())
