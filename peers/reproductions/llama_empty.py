"""transformers' Llama layer: a row that may look at nothing, filled as its model does, reads the future too."""

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention

config, x = LlamaConfig(hidden_size=8, num_attention_heads=2, num_key_value_heads=2), torch.randn(1, 3, 8)
layer = LlamaAttention(config, 0)
may_look = torch.ones(3, 3).tril().bool() & torch.tensor([False, True, True])  # the first token is padding
added, turns = torch.where(may_look, 0.0, torch.finfo().min)[None, None], (torch.ones(1, 3, 4), torch.zeros(1, 3, 4))
first = layer(x, turns, added)[0][0, 0]
x[0, 2] += 1
print(((layer(x, turns, added)[0][0, 0] - first).abs().max() > 1e-3).item())
