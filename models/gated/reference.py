"""The formula of the paper in plain PyTorch, used as ground truth by the tests."""

from __future__ import annotations

from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, scores_and_values
from .gated import GatedAttention


def reference(
    layer: GatedAttention,
    x: Tensor,
    mask: Tensor | None = None,
    attn_bias: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    scores, V = scores_and_values(layer, x, attn_bias, context)  # (B, H, N, M), (B, H, M, d)
    heads = masked_softmax(scores, mask) @ V  # (B, H, N, d)
    gates = layer.gate.projection(x).sigmoid().unflatten(-1, (layer.num_heads, -1))  # (B, N, H, d), or (B, N, H, 1)
    return merge_heads(layer.output, heads * gates.transpose(1, 2), mask)
