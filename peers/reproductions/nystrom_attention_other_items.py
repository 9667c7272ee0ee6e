"""Six steps to an inverse begin at the largest sum of the whole batch, so that its items change each other."""

import torch
from nystrom_attention import NystromAttention

torch.manual_seed(0)
layer = NystromAttention(dim=12, dim_head=4, heads=3, num_landmarks=4).double()
x, other = torch.randn(1, 8, 12).double(), 5 * torch.randn(1, 8, 12).double()
off = (layer(torch.cat([x, other]))[:1] - layer(x)).abs().max()
assert off < 1e-9, f"beside another item of its batch a sequence is off by {off:.2g}"
