"""By default nn.MultiheadAttention gives NaN to a row that may look at nothing; with need_weights=False it does not."""

import torch

torch.manual_seed(0)
layer, x = torch.nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 3, 8)
padding = torch.tensor([[True, False, False]])  # True is padding
causal = torch.ones(3, 3, dtype=torch.bool).triu(1)  # True is not allowed
print(layer(x, x, x, key_padding_mask=padding, attn_mask=causal)[0][0, 0].isnan().all().item())
