"""A fully masked row has a finite output, and NaN if the attention weights are returned."""

import torch

torch.manual_seed(0)
layer, x = torch.nn.MultiheadAttention(12, 3, batch_first=True), torch.randn(1, 5, 12)
forbidden = torch.zeros(5, 5, dtype=torch.bool)
forbidden[2] = True
plain, shown = (layer(x, x, x, attn_mask=forbidden, need_weights=asked)[0] for asked in (False, True))
assert torch.allclose(plain, shown), f"without weights {plain[0, 2, 0]:.2f}, with weights {shown[0, 2, 0]:.2f}"
