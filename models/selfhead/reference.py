"""The formula of the paper in plain PyTorch, used as ground truth by the tests."""

from __future__ import annotations

import math

from torch import Tensor

from ..multihead.reference import masked_softmax
from .selfhead import SelfAttention


def reference(layer: SelfAttention, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, 1, N, N) and includes ``causal``."""
    Q, K, V = layer.query(x), layer.key(x), layer.value(x)  # (B, N, D) each
    scores = Q @ K.mT / math.sqrt(x.shape[-1])  # (B, N, N)
    allowed = None if mask is None else mask.squeeze(1)
    weights = masked_softmax(scores if attn_bias is None else scores + attn_bias.squeeze(1), allowed)
    y = layer.output(weights @ V)
    return y if allowed is None else y.masked_fill(~allowed.any(-1, keepdim=True), 0)
