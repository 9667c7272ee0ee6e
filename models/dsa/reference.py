"""The formula of the paper in plain PyTorch, with the matrix of index scores."""

from __future__ import annotations

import torch
from torch import Tensor

from ..multihead.reference import masked_softmax, merge_heads, rotate, scores_and_values, split_heads
from .dsa import DeepSeekSparseAttention


def reference(
    layer: DeepSeekSparseAttention, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None
) -> Tensor:
    """The output of ``layer(x)``, (B, N, D); ``mask`` is Boolean (B, H, N, M) and includes ``causal``."""
    scores, V = scores_and_values(layer, x, None, context)  # (B, H, N, M), (B, H, M, d)
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    I = index_scores(layer, x, x if context is None else context)  # noqa: E741  (B, N, M)
    ranked = I.unsqueeze(1).masked_fill(~mask, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = ranked.argsort(-1)  # of each key: 0 for the largest index score, the earlier key first
    return merge_heads(layer.output, masked_softmax(scores, mask & (rank < layer.top_k)) @ V, mask)


def index_scores(layer: DeepSeekSparseAttention, x: Tensor, context: Tensor) -> Tensor:
    """``I_ts = Σ_j w_tj ReLU(q_tj · k_s)``, (B, N, M)."""
    part = layer.indexer
    q = split_heads(x @ part.query.weight.T, part.num_heads)  # (B, h_I, N, d_I)
    k = (context @ part.key.weight.T).unsqueeze(1)  # (B, 1, M, d_I)
    k = (k - k.mean(-1, keepdim=True)) / (k.var(-1, keepdim=True, correction=0) + part.key_norm.eps).sqrt()
    k = k * part.key_norm.weight + part.key_norm.bias
    w = x @ part.weight.weight.T / (part.num_heads * part.head_dim) ** 0.5  # (B, N, h_I)
    q, k = rotate(q, part.positions), rotate(k, part.positions)
    return torch.einsum("bnh,bhnm->bnm", w, (q @ k.mT).relu())
