"""The formula of talking-heads attention in eager PyTorch.

Axes: B batch, H heads, N queries, M keys, D embed_dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, project_qkv, rotate
from .talkingheads import TalkingHeadsAttention


def reference(
    layer: TalkingHeadsAttention,
    x: Tensor,
    mask: Tensor | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    Q, K, V = project_qkv(layer.qkv, x, context, layer.num_heads)
    Q, K = rotate(Q, layer.positions), rotate(K, layer.positions)
    scores = Q @ K.mT / math.sqrt(layer.head_dim)  # (B, H, N, M)
    mixed = torch.einsum("gf,bfnm->bgnm", layer.scores, scores)
    weights = torch.einsum("ig,bgnm->binm", layer.mixture, masked_softmax(mixed, mask))
    return merge_heads(layer.output, weights @ V, mask)
