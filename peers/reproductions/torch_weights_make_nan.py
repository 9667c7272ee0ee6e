"""A fully masked row has a finite output, and NaN if the attention weights are returned."""

import torch

torch.manual_seed(0)
layer, x = torch.nn.MultiheadAttention(12, 3, batch_first=True), torch.randn(1, 5, 12)
masked_out = torch.zeros(5, 5, dtype=torch.bool)
masked_out[2] = True
plain, weighted = (layer(x, x, x, attn_mask=masked_out, need_weights=value)[0] for value in (False, True))
assert torch.allclose(plain, weighted), f"without weights {plain[0, 2, 0]:.2f}, with weights {weighted[0, 2, 0]:.2f}"
