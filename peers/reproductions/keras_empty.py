"""In Keras a row that may look at nothing reads the average of everything, the future and the padding too."""

import os

os.environ["KERAS_BACKEND"] = "torch"
import keras
import torch

layer, x = keras.layers.MultiHeadAttention(2, 4), torch.randn(1, 3, 8)
may_look = torch.tensor([[[False, True, True]] * 3])  # the first token is padding
one = layer(x, x, attention_mask=may_look, use_causal_mask=True)[0, 0]
x[0, 2] += 1
print(((layer(x, x, attention_mask=may_look, use_causal_mask=True)[0, 0] - one).abs().max() > 1e-3).item())
