"""local-attention's LocalMHA: its dropout is never applied."""

import torch
from local_attention.transformer import LocalMHA

layer, x = LocalMHA(dim=8, window_size=4, dim_head=4, heads=2, dropout=0.9).train(), torch.randn(1, 8, 8)
print(torch.equal(layer(x), layer(x)))
