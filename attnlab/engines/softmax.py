"""Softmax attention: the fused computation, and the map that it never writes down.

Axes: B batch, H heads, N queries, M keys, d head_dim. A mechanism with one head may leave H away.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.masks import BoundMask


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BoundMask | None = None,
    bias: Tensor | None = None,
    *,
    dropout: float = 0.0,
) -> Tensor:
    """``softmax(q kᵀ / √d + bias) v`` over the permitted keys, by PyTorch's fused kernels.

    Args:
        q: (B, H, N, d), or (B, N, d) for one head.
        k: (B, H, M, d).
        v: (B, H, M, d).
        mask: who may look at whom.
        bias: added to the scores, broadcastable to (B, H, N, M).
        dropout: the probability of dropping a weight; 0 outside of training.

    Returns:
        The shape of ``q``; zeros in a row that may look at nothing.

    Source: Vaswani et al. 2017, section 3.2.1; Dao et al. 2022 for the kernel that never writes the map.
    """
    if q.dim() == 3:  # the fused kernels want a head axis
        one = softmax_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), mask, bias, dropout=dropout)
        return one.squeeze(1)
    if bias is None and (mask is None or mask.is_causal):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=mask is not None)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_additive(q, mask, bias), dropout_p=dropout)


def softmax_weights(q: Tensor, k: Tensor, mask: BoundMask | None = None, bias: Tensor | None = None) -> Tensor:
    """``softmax(q kᵀ / √d + bias)`` written down: (B, H, N, M), zero where a query may not look.

    Takes what `softmax_attention` takes. A row that may look at nothing is zero.
    """
    if q.dim() == 3:
        return softmax_weights(q.unsqueeze(1), k.unsqueeze(1), mask, bias)
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return masked_softmax(scores if bias is None else scores + bias.to(q.dtype), mask)


def masked_softmax(scores: Tensor, mask: BoundMask | None = None) -> Tensor:
    """``softmax(scores)`` over the permitted keys: (B, H, N, M), zero where a query may not look.

    A score of -inf is not permitted either. A row without any permitted key is zero, and its gradient too.
    """
    forbidden = scores == -torch.inf
    if mask is not None:
        forbidden = forbidden | ~mask.tensor()
    # The most negative finite number: -inf would make an empty row NaN on the way, forward and backward.
    scores = scores.masked_fill(forbidden, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill(forbidden, 0.0)


def _additive(q: Tensor, mask: BoundMask | None, bias: Tensor | None) -> Tensor | None:
    if mask is None or bias is None:
        return bias.to(q.dtype) if bias is not None else mask.tensor() if mask is not None else None
    return bias.to(q.dtype).masked_fill(~mask.tensor(), -torch.inf)
