"""With fewer tokens than k the layer raises, as at the start of every generated text."""

import torch
from x_transformers import Decoder

layers = Decoder(dim=12, depth=1, heads=3, attn_dim_head=4, attn_sparse_topk=8)
assert layers(torch.randn(1, 8, 12)).shape == (1, 8, 12)
try:
    layers(torch.randn(1, 7, 12))
except RuntimeError as error:
    raise AssertionError(f"7 tokens: {error}") from None
