"""Values that are projected are projected over all places at once, so that a causal layer hears the future."""

import torch
from x_transformers.x_transformers import Attention

torch.manual_seed(0)
layer, x = Attention(12, dim_head=4, heads=3, causal=True, orthog_projected_values=True), torch.randn(1, 5, 12)
changed = torch.cat([x[:, :4], torch.randn(1, 1, 12)], 1)
moved = (layer(x) - layer(changed))[:, :4].abs().max()
assert moved == 0, f"a new last token moves the outputs before it by {moved:.2f}"
