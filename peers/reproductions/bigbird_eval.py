"""transformers' BigBird in eval draws no blocks, but counts the first block once more for each that it would draw."""

import torch
from transformers import BigBirdConfig
from transformers.models.big_bird import modeling_big_bird as bb

x, made = torch.randn(1, 26, 4), BigBirdConfig(hidden_size=4, num_attention_heads=1, block_size=2)
layer = bb.BigBirdBlockSparseAttention(made).eval()
blocked, *masks = bb.BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, 26), 2)
found = layer(x, *masks, blocked, blocked)[0][0, 12].flatten()
seen = [0, 1, *range(10, 16), 24, 25]  # of token 12: the first, the near and the last blocks
alone = (layer.query(x)[0, 12] @ layer.key(x)[0, seen].T / 2).softmax(-1) @ layer.value(x)[0, seen]
print(((found - alone).abs().max() > 1e-3).item())
