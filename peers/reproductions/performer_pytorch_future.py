"""The features of all keys are scaled by the maximum over the whole sequence: a causal layer leaks the future."""

import torch
from performer_pytorch import SelfAttention

torch.manual_seed(0)
layer, x = SelfAttention(12, heads=3, dim_head=4, causal=True).double(), torch.randn(1, 5, 12).double()
changed = torch.cat([x[:, :4], 10 * torch.randn(1, 1, 12).double()], 1)
change = (layer(x) - layer(changed))[:, :4].abs().max()
assert change < 1e-9, f"a new last token changes the outputs before it by {change:.2g}"
