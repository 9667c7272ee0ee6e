"""Softmax attention in PyTorch's own differentiable operations: what the fused computations fall back to.

Axes: B batch, H heads, N queries, M keys, d head_dim, w width of the values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    matrix: Tensor | None = None,
    *,
    scale: float,
    sink: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """``(softmax([sink | scale · q kᵀ + matrix]) ⊙ keep) [0 | v]``, (B, H, N, w).

    Args:
        q: (B, H, N, d).
        k: (B, H, M, d).
        v: (B, H, M, w).
        matrix: Boolean (True means attend) or added to the scores, broadcastable to (B, H, N, M).
        scale: what a score is multiplied by.
        sink: (H,), a logit in every row that takes weight and gives nothing.
        keep: (B, H, N, M), the factors of a dropout.
    """
    scores = scale * (q @ k.mT)
    if matrix is not None and matrix.dtype != torch.bool:
        scores = scores + matrix
        matrix = matrix != -torch.inf
    weights = masked_softmax(scores, matrix, sink)
    return (weights if keep is None else weights * keep) @ v


def explicit_gradients(
    compute: Callable[..., Tensor], inputs: tuple[Tensor, ...], gradient: Tensor
) -> list[Tensor | None]:
    """The gradients of ``compute(*inputs)``, which can be differentiated again; for the backward pass of a function."""
    wanted = [t for t in inputs if t.requires_grad]
    found = iter(torch.autograd.grad(compute(*inputs), wanted, gradient, create_graph=True))
    return [next(found) if t.requires_grad else None for t in inputs]


def masked_softmax(scores: Tensor, permitted: Tensor | None = None, sink: Tensor | None = None) -> Tensor:
    """``softmax(scores)`` over the permitted keys: (B, H, N, M), zero elsewhere.

    A score of -inf is not permitted either. A fully masked row is zero, and so is its gradient.

    Args:
        scores: (B, H, N, M).
        permitted: Boolean, broadcastable to the scores.
        sink: (H,), a logit in every row that takes weight and is not shown.
    """
    forbidden = scores == -torch.inf
    if permitted is not None:
        forbidden = forbidden | ~permitted
    # The most negative finite number: -inf would make a fully masked row NaN on the way, forward and backward.
    scores = scores.masked_fill(forbidden, torch.finfo(scores.dtype).min)
    if sink is None:
        return scores.softmax(-1).masked_fill(forbidden, 0.0)
    logit = sink.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([logit, scores], -1).softmax(-1)[..., 1:].masked_fill(forbidden, 0.0)
