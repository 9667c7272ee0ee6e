"""performer-pytorch: a real token's output changes with what stands in the padding."""

import torch
from performer_pytorch import SelfAttention

torch.manual_seed(0)
layer, x = SelfAttention(dim=8, heads=2, dim_head=4).eval(), torch.randn(1, 5, 8)
real = torch.tensor([[True, True, True, False, False]])
first = layer(x, mask=real)[0, 0]
x[0, 3:] *= 10
print(((layer(x, mask=real)[0, 0] - first).abs().max() > 1e-3).item())
