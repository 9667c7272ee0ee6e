"""The formula of the paper with a matrix of the allowed pairs, in eager PyTorch: the ground truth of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, split_heads
from .reformer import ReformerAttention


def reference(layer: ReformerAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``layer(x)`` must return; ``mask`` is Boolean (B, H, N, N), contains ``causal``, and excludes padding."""
    Q, V = (split_heads(part, layer.num_heads) for part in layer.qkv(x).chunk(2, -1))
    K = Q / (Q.square().sum(-1, keepdim=True) + 1e-6 * layer.head_dim).sqrt()
    N, c = x.shape[1], layer.chunk_length
    own = torch.eye(N, dtype=torch.bool)
    mask = torch.ones_like(own)[None, None] if mask is None else mask
    real = mask.any(-2, keepdim=True)  # (B, H, 1, N)
    bucket, rank = sorted_tokens(layer, Q, real)

    def differences(of: Tensor) -> Tensor:
        return of.unsqueeze(-1) - of.unsqueeze(-2)  # (B, H, r, N, N), of query and key

    if layer.causal:
        near = (differences(bucket) == 0) & (differences(rank) > 0) & (differences(rank) <= c)
    else:
        near = (differences(rank // c) == 0) | (differences(rank // c) == 1)
    allowed = near.any(2) & real & ~own
    first = real & (real.cumsum(-1) == 1)  # the key of padding without others
    alone = torch.where(real.mT, own, first) & mask
    allowed = torch.where(allowed.any(-1, keepdim=True), allowed, alone)
    return merge_heads(layer.output, masked_softmax(Q @ K.mT, allowed) @ V, mask)


def sorted_tokens(layer: ReformerAttention, Q: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The bucket of every token in every round, and its rank by bucket and position, (B, H, r, N); padding is last."""
    rotated = Q.unsqueeze(2) @ layer.rotations
    both = torch.cat([rotated, -rotated], -1)
    bucket = both.argmax(-1) if layer.num_buckets > 1 else torch.zeros(both.shape[:-1])
    bucket = bucket.where(real, layer.num_buckets)
    key = bucket * Q.shape[2] + torch.arange(Q.shape[2])
    return bucket, (key.unsqueeze(-1) > key.unsqueeze(-2)).sum(-1)
