"""Without its CUDA kernel, the layer returns zeros, without a warning."""

import torch
from transformers import MraConfig
from transformers.models.mra.modeling_mra import MraSelfAttention

torch.manual_seed(0)
layer = MraSelfAttention(MraConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=128))
out = layer(torch.randn(1, 128, 64), torch.ones(1, 128))[0]
assert out.any(), f"the largest of {out.numel()} values is {out.abs().max():.0f}"
