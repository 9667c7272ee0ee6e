"""fightingcv-attention gives NaN to a row that may look at nothing."""

import torch
from fightingcv_attention.attention.SelfAttention import ScaledDotProductAttention

layer, x = ScaledDotProductAttention(8, 4, 4, 2), torch.randn(1, 3, 8)
masked = torch.zeros(1, 2, 3, 3, dtype=torch.bool)
masked[:, :, 0] = True
print(layer(x, x, x, attention_mask=masked)[0, 0].isnan().all().item())
