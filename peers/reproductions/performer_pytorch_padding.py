"""A mask takes the values of the padding away, and not its keys, which count where the weights are made one in sum."""

import torch
from performer_pytorch import SelfAttention

torch.manual_seed(0)
layer, x = SelfAttention(12, heads=3, dim_head=4), torch.randn(1, 5, 12)
mask, changed = torch.tensor([[True] * 3 + [False] * 2]), torch.cat([x[:, :3], torch.randn(1, 2, 12)], 1)
moved = (layer(x, mask=mask) - layer(changed, mask=mask))[:, :3].abs().max()
assert moved < 1e-5, f"other padding moves the real tokens by {moved:.2g}"
