"""``keras.layers.MultiHeadAttention`` on PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # read when Keras is imported
os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")

import keras
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from attnlab.models.multihead import MultiAttention


class MultiHeadAttention(nn.Module):
    """``training`` follows the mode of the module, and the dtype policy the dtype of the parameters."""

    def __init__(self, dim: int, num_heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        keras.utils.set_random_seed(torch.initial_seed() % 2**32)  # Keras has a generator of its own
        self.inner = keras.layers.MultiHeadAttention(num_heads, dim // num_heads, dropout=dropout, name="attention")
        self.inner.build((None, None, dim), (None, None, dim))
        self.causal, self.num_heads = causal, num_heads

    @classmethod
    def from_attnlab(cls, ours: MultiAttention) -> MultiHeadAttention:
        """The layer with the parameters of ours."""
        D, H = ours.embed_dim, ours.num_heads
        layer = cls(D, H, causal=ours.causal)
        values: list[Tensor] = []
        for weight, bias in zip(ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3), strict=True):
            values += [weight.T.reshape(D, H, -1), bias.reshape(H, -1)]
        values += [ours.output.weight.T.reshape(H, -1, D), ours.output.bias]
        layer.inner.set_weights([value.detach().numpy() for value in values])
        return layer

    def fastest_call(self, length: int) -> Callable[[Tensor], Tensor]:
        """The call that is timed; ``flash_attention=True`` raises on a CPU, the default uses fused attention."""
        return lambda x: self.inner(x, x, use_causal_mask=self.causal)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); ``mask`` (B, N, N), True for *attend*."""
        return self.inner(x, x, attention_mask=mask, use_causal_mask=self.causal, training=self.training)

    def attention_weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, H, N, N)."""
        options = {"attention_mask": mask, "use_causal_mask": self.causal, "training": self.training}
        return self.inner(x, x, return_attention_scores=True, **options)[1]

    def _apply(self, *args: Any, **options: Any) -> MultiHeadAttention:
        """Move the parameters, and set the dtype policy of every Keras layer to match."""
        super()._apply(*args, **options)
        dtype = str(self.inner.query_dense.kernel.value.dtype).removeprefix("torch.")
        for layer in self.modules():
            if isinstance(layer, keras.layers.Layer):
                layer.dtype_policy = dtype
        return self
