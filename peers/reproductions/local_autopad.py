"""local-attention with autopad: the zeros that it adds are looked at, unless all tokens are said to be real."""

import torch
from local_attention import LocalAttention

torch.manual_seed(0)
attend, x = LocalAttention(4, autopad=True, use_rotary_pos_emb=False), torch.randn(1, 1, 3, 8)
real = torch.ones(1, 3, dtype=torch.bool)
print(((attend(x, x, x) - attend(x, x, x, mask=real)).abs().max() > 1e-3).item())
