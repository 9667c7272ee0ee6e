"""local-attention: a row that may look at nothing reads everything near, the future too."""

import torch
from local_attention import LocalAttention

torch.manual_seed(0)
attend, x = LocalAttention(4, causal=True, use_rotary_pos_emb=False), torch.randn(1, 1, 4, 8)
real = torch.tensor([[False, True, True, True]])
first = attend(x, x, x, mask=real)[0, 0, 0]
x[0, 0, 3] += 1
print(((attend(x, x, x, mask=real)[0, 0, 0] - first).abs().max() > 1e-3).item())
