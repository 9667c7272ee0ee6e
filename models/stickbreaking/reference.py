"""The formula in eager PyTorch: products of 1 - β, without logarithms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..multihead.reference import merge_heads, scores_and_values
from .stickbreaking import StickBreakingAttention


def reference(
    layer: StickBreakingAttention, x: Tensor, mask: Tensor | None = None, attn_bias: Tensor | None = None
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, N) and includes ``causal``."""
    scores, V = scores_and_values(layer, x, attn_bias)  # (B, H, N, N), (B, H, N, d)
    allowed = torch.ones_like(scores, dtype=torch.bool).tril(0 if layer.attend_current else -1)
    allowed = allowed if mask is None else allowed & mask
    beta = torch.sigmoid(scores).masked_fill(~allowed, 0)
    kept = torch.sigmoid(-scores).masked_fill(~allowed, 1)  # 1 - β
    products = kept.flip(-1).cumprod(-1).flip(-1)  # of this key and all nearer ones
    nearer = F.pad(products[..., 1:], (0, 1), value=1.0)  # of the nearer ones
    return merge_heads(layer.output, beta * nearer @ V, allowed)
