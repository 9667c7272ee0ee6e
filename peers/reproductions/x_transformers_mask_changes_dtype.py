"""With a mask, a layer in bfloat16 returns float32."""

import torch
from x_transformers.x_transformers import Attention

layer, x = Attention(12, dim_head=4, heads=3).bfloat16(), torch.randn(1, 5, 12).bfloat16()
plain, masked = layer(x), layer(x, mask=torch.ones(1, 5, dtype=torch.bool))
assert plain.dtype == masked.dtype, f"{plain.dtype} without a mask, {masked.dtype} with one"
