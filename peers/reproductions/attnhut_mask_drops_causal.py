"""A causal layer is causal until it is given a mask: then all of the future is heard."""

import attnhut
import torch

torch.manual_seed(0)
kinds = attnhut.StandardAttention, attnhut.GroupedQueryAttention, attnhut.MultiHeadLatentAttention
layers = [kind(12, 3, **({"num_kv_heads": 1} if "Grouped" in kind.__name__ else {}), causal=True) for kind in kinds]
x, mask = torch.randn(1, 5, 12), torch.ones(5, 5, dtype=torch.bool)  # every key is real
off = [f"{(layer(x, attn_mask=mask) - layer(x)).abs().max():.2f}" for layer in layers]
assert set(off) == {"0.00"}, f"a mask that hides nothing moves them by {', '.join(off)}"
