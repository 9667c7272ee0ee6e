"""Every call in eval mode overwrites a parameter, so that two calls return different outputs."""

import torch
from fightingcv_attention.attention.MUSEAttention import MUSEAttention

torch.manual_seed(0)
layer, x = MUSEAttention(d_model=12, d_k=12, d_v=12, h=3).eval(), torch.randn(1, 5, 12)
torch.nn.init.normal_(layer.dy_paras)
first, second = layer(x, x, x), layer(x, x, x)
assert torch.equal(first, second), f"two calls in eval mode differ by {(first - second).abs().max():.2g}"
