"""The projection treats all positions as one vector, so that a causal layer leaks the future."""

import torch
from x_transformers.x_transformers import Attention

torch.manual_seed(0)
layer, x = Attention(12, dim_head=4, heads=3, causal=True, orthog_projected_values=True), torch.randn(1, 5, 12)
changed = torch.cat([x[:, :4], torch.randn(1, 1, 12)], 1)
change = (layer(x) - layer(changed))[:, :4].abs().max()
assert change == 0, f"a new last token changes the outputs before it by {change:.2f}"
