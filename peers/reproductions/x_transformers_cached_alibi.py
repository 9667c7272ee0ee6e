"""With a cache, a new token differs from the full pass: the bias is computed from that token alone."""

import torch
from x_transformers.x_transformers import Attention

torch.manual_seed(0)
layer, x = Attention(12, dim_head=4, heads=3, causal=True, data_dependent_alibi=True), torch.randn(1, 7, 12)
assert layer.can_cache_kv
step = layer(x[:, 6:], cache=layer(x[:, :6], return_intermediates=True)[1])
difference = (step - layer(x)[:, 6:]).abs().max()
assert difference < 1e-5, f"the last of 7 tokens differs by {difference:.2g}"
