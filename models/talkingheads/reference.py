"""The formula of talking-heads attention in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, scores_and_values
from .talkingheads import TalkingHeadsAttention


def reference(
    layer: TalkingHeadsAttention, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    scores, V = scores_and_values(layer, x, None, context)  # (B, H, N, M), (B, H, M, d)
    mixed = torch.einsum("gf,bfnm->bgnm", layer.scores, scores)
    weights = torch.einsum("ig,bgnm->binm", layer.mixture, masked_softmax(mixed, mask))
    return merge_heads(layer.output, weights @ V, mask)
