"""A mask zeroes the values of the padding but not its keys, which still count in the normalizer."""

import torch
from performer_pytorch import SelfAttention

torch.manual_seed(0)
layer, x = SelfAttention(12, heads=3, dim_head=4), torch.randn(1, 5, 12)
mask, changed = torch.tensor([[True] * 3 + [False] * 2]), torch.cat([x[:, :3], torch.randn(1, 2, 12)], 1)
change = (layer(x, mask=mask) - layer(changed, mask=mask))[:, :3].abs().max()
assert change < 1e-5, f"other padding changes the real tokens by {change:.2g}"
