"""``keras.layers.MultiHeadAttention`` on PyTorch, whose masks say True for *may look*, as here."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when Keras is imported
os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")

import keras
import torch
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    """``training`` follows the mode of the module, and its dtype policy the dtype of the weights."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        keras.utils.set_random_seed(torch.initial_seed() % 2**32)  # Keras draws by its own generator
        self.inner = keras.layers.MultiHeadAttention(num_heads, dim // num_heads, dropout=dropout, name="attention")
        self.inner.build((None, None, dim), (None, None, dim))
        self.causal, self.num_heads = causal, num_heads

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to the same; ``mask`` (B, N, N)."""
        return self.inner(x, x, attention_mask=mask, use_causal_mask=self.causal, training=self.training)

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, N)."""
        asked = {"attention_mask": mask, "use_causal_mask": self.causal, "training": self.training}
        return self.inner(x, x, return_attention_scores=True, **asked)[1]

    def _apply(self, *args: Any, **options: Any) -> MultiHeadAttention:
        """Move the weights, and say so to every Keras layer, which computes in the dtype of its policy."""
        super()._apply(*args, **options)
        dtype = str(self.inner.query_dense.kernel.value.dtype).removeprefix("torch.")
        for layer in self.modules():
            if isinstance(layer, keras.layers.Layer):
                layer.dtype_policy = dtype
        return self
