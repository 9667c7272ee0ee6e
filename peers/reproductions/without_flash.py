"""x-transformers without flash: a row that may look at nothing is NaN in float64, and reads the future in float32."""

import torch
from x_transformers.x_transformers import Attention

torch.manual_seed(0)
layer, x = Attention(dim=8, heads=2, dim_head=4, causal=True), torch.randn(1, 3, 8)
may_look = torch.tensor([False, True, True]).expand(1, 1, 3, 3)  # the first token is padding
wrong = layer.double()(x.double(), attn_mask=may_look)[0, 0].isnan().all()
first = layer.float()(x, attn_mask=may_look)[0, 0]
x[0, 2] += 1
print((wrong & ((layer(x, attn_mask=may_look)[0, 0] - first).abs().max() > 1e-3)).item())
