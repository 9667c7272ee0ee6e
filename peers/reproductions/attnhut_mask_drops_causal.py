"""With a mask, a causal layer is no longer causal: the mask replaces the causal mask."""

import attnhut
import torch

torch.manual_seed(0)
kinds = attnhut.StandardAttention, attnhut.GroupedQueryAttention, attnhut.MultiHeadLatentAttention
layers = [kind(12, 3, **({"num_kv_heads": 1} if "Grouped" in kind.__name__ else {}), causal=True) for kind in kinds]
x, mask = torch.randn(1, 5, 12), torch.ones(5, 5, dtype=torch.bool)  # every key is real
difference = [f"{(layer(x, attn_mask=mask) - layer(x)).abs().max():.2f}" for layer in layers]
assert set(difference) == {"0.00"}, f"a mask that allows every key changes the outputs by {', '.join(difference)}"
