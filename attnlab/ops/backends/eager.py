"""Softmax attention in differentiable PyTorch operations, for derivatives that the fused kernels do not have.

Axes: B batch, H heads, N queries, M keys, d head_dim, w width of the values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attnlab.masks import BoundMask


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
    """``(softmax([sink | scale · q kᵀ + matrix]) ⊙ keep) [0 | v]``, (B, H, N, w); ``keep`` holds the dropout factors.

    The matrix is Boolean (True means attend) or added to the scores, broadcastable to (B, H, N, M).
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
    """Return the gradients of ``compute(*inputs)``, which can be differentiated again."""
    wanted = [t for t in inputs if t.requires_grad]
    gradients = iter(torch.autograd.grad(compute(*inputs), wanted, gradient, create_graph=True))
    return [next(gradients) if t.requires_grad else None for t in inputs]


def masked_softmax(scores: Tensor, mask: BoundMask | Tensor | None = None, sink: Tensor | None = None) -> Tensor:
    """``softmax(scores)`` over the allowed keys: (B, H, N, M), zero elsewhere.

    A score of -inf is masked too. A fully masked row is zero, and so is its gradient.

    Args:
        scores: (B, H, N, M).
        mask: a bound mask, or a Boolean tensor that broadcasts to the scores.
        sink: (H,), a logit in every row that takes weight and is not part of the result.
    """
    forbidden = scores == -torch.inf
    if mask is not None:
        forbidden = forbidden | ~(mask.tensor() if isinstance(mask, BoundMask) else mask)
    # The most negative finite value: -inf would make a fully masked row NaN, forward and backward.
    scores = scores.masked_fill(forbidden, torch.finfo(scores.dtype).min)
    if sink is None:
        return scores.softmax(-1).masked_fill(forbidden, 0.0)
    logit = sink.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
    return torch.cat([logit, scores], -1).softmax(-1)[..., 1:].masked_fill(forbidden, 0.0)
