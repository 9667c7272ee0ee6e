"""The iterative inverse starts from the maximum over the batch, so that the items of a batch affect each other."""

import torch
from nystrom_attention import NystromAttention

torch.manual_seed(0)
layer = NystromAttention(dim=12, dim_head=4, heads=3, num_landmarks=4).double()
x, other = torch.randn(1, 8, 12).double(), 5 * torch.randn(1, 8, 12).double()
difference = (layer(torch.cat([x, other]))[:1] - layer(x)).abs().max()
assert difference < 1e-9, f"another item in the batch changes the output by {difference:.2g}"
